"""Makes pytest execute the pages' examples and the docstrings (`pytest docs README.md patterns`).

It stands here because a conftest.py inside docs/ would be published as a page.
"""

from __future__ import annotations

from tools.collect import collector

pytest_collect_file = collector()
