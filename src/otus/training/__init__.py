"""Training a system, whatever its task: one loop on Lightning Fabric, to be read from top to bottom.

Each step computes the losses of a system, their gradients, an optimizer step, and an update of the exponential moving
average (EMA) of the weights, which are the weights that are validated and saved. The system's task defines the protocol
of validation and the metric that selects the best weights. Every random generator is seeded by (seed, epoch, index), so
results do not depend on the number of threads, and a resumed run ends with the same weights as an uninterrupted one.

Read in this order:

1. :mod:`~otus.training.loop`: :func:`~otus.training.loop.fit`, the loop.
2. :mod:`~otus.training.run`: ``otus.train``, everything before and after the loop, with
   :mod:`~otus.training.datasets` (training and validation data), :mod:`~otus.training.building` (the system and its
   initial weights), :mod:`~otus.training.fine_tuning` (weights of another model) and :mod:`~otus.training.run_config`
   (the configuration of a run).
3. :mod:`~otus.training.train_loader`: which images are in which batch, and how they are loaded.
4. :mod:`~otus.training.optimization`, :mod:`~otus.training.ema`, :mod:`~otus.training.lr_finder`: optimizer and schedule,
   EMA, and the learning-rate range test.
5. :mod:`~otus.training.validation` and :mod:`~otus.training.snapshots`: metrics and images during training.
6. :mod:`~otus.training.state`, :mod:`~otus.training.run_folder`, :mod:`~otus.training.resuming`: counters, files, and
   resuming.
7. :mod:`~otus.training.budget`: number of steps, batch size and image size for a time budget.
8. :mod:`~otus.training.devices`, :mod:`~otus.training.seeding`, :mod:`~otus.training.interrupts`,
   :mod:`~otus.training.progress`: processes, random numbers, Ctrl-C, and the progress display.
"""
