"""coursekit: deep learning for vision, in notebooks whose every claim is a check that runs.

Floor 0: ``runtime``, ``checks``, ``measure``, ``figures``. Floor 1: ``data``. Floor 2: ``patchwise``.
Floor 3: ``explore``, ``exercises``, ``workbook``. A room imports from lower floors only.
"""
