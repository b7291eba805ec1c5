"""The notebooks as files. `python -m coursekit.workbook` lists the commands; `notebooks` and `publish` do the work."""
