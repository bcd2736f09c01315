"""Reports: the folders, tables, plots and pages of a prediction, an evaluation, a comparison or a training.

A report is made in three steps. The figures are computed in ``otus.metrics`` and
``otus.evaluation``, never here. A report object collects them (an :class:`~otus.reports.analysis.Analysis`, a
:class:`~otus.reports.comparison.Comparison`, an explanation) and returns them twice: ``document()`` for ``--json`` and
``page()`` for people, so that both always agree. A :class:`~otus.reports.page.Page` is one HTML file without references
to the network.

Read the files in this order:

1. ``page.py``: sections, figures and tables, and the HTML template; all reports are written through it.
2. ``plots.py``: the plots that matplotlib draws: precision-recall curves, confusion matrix, calibration, training curves.
3. ``analysis.py``: all figures of predictions for a data set, each computed when it is first asked for.
4. ``predictions.py``: the folder of ``otus predict``: overlays, ``predictions.json`` and ``index.html``.
5. ``comparison.py``: the table of ``otus compare --models``, as Markdown, CSV, plot and page.
6. ``proposals.py``: proposals drawn on their image, and their recall by number and IoU. ``ablation.py``: the table of
   ``otus compare --vary``. ``training_plot.py``: losses and validation metrics by epoch.
7. ``explain/``: how a detector reaches its result on one image, and how AP and its differences come about.

Boxes and masks are drawn by ``otus.visualization``. Nothing here runs a model, except ``explain/``, which
records one forward pass.
"""
