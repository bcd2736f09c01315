"""Training a system, whatever its task: one loop on Lightning Fabric, to be read from top to bottom.

The loop asks a system for its losses, their gradient for a step, and the exponential moving average (EMA) of the weights for
validation: those are the weights that are kept. What is validated, by which protocol, and which figure decides is said
by the task of the system. Every source of randomness is forked from (seed, epoch, index), so results do not depend on
the number of threads, and a run that is stopped goes on to the weights that it would have had.

Read in this order:

1. :mod:`~otus.training.loop`: :func:`~otus.training.loop.fit`, the loop.
2. :mod:`~otus.training.run`: ``otus.train``, all that comes before and after it, with
   :mod:`~otus.training.datasets` (what is learned and validated on), :mod:`~otus.training.building` (the system and its
   weights), :mod:`~otus.training.fine_tuning` (weights of another model) and :mod:`~otus.training.run_config` (what a run
   was started with).
3. :mod:`~otus.training.train_loader`: which images are in which batch, and how they are loaded.
4. :mod:`~otus.training.optimization`, :mod:`~otus.training.ema`, :mod:`~otus.training.lr_finder`: optimizer and schedule,
   the average, and a learning rate by trying.
5. :mod:`~otus.training.validation` and :mod:`~otus.training.snapshots`: figures and images on the way.
6. :mod:`~otus.training.state`, :mod:`~otus.training.run_folder`, :mod:`~otus.training.resuming`: counters, files, and going
   on.
7. :mod:`~otus.training.budget`: what a number of minutes buys.
8. :mod:`~otus.training.devices`, :mod:`~otus.training.seeding`, :mod:`~otus.training.interrupts`,
   :mod:`~otus.training.progress`: processes, randomness, Ctrl-C, and what a person sees.
"""
