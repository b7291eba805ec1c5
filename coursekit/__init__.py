"""coursekit: deep learning for vision, in notebooks whose every claim is a check that runs.

Floor 0: ``files``, ``runtime``, ``checks``, ``measure``, ``figures``. Floor 1: ``data``, ``training``. Floor 2: ``patchwise``,
``diffusion``, ``segmentation``, ``vae``, ``fid``. Floor 3: ``explore``, ``exercises``, ``student``, ``workbook``. A room imports from
lower floors only; but ``diffusion`` measures with ``fid``, and ``student`` builds on ``workbook``. Each room's docstring says what it
holds: ``python -m pydoc coursekit.vae``.
"""
