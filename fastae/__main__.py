"""``python -m fastae``, the same as the ``fastae`` command."""

from .cli import main

raise SystemExit(main())
