"""The notebooks and their explorers, driven in a real JupyterLab by a real Chromium. Run with `pytest tests/browser`."""
