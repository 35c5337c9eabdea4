"""Rows 1, 3, 4 and 8: a rank raises, alone or with others. Nobody loses anything."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from faults_world import Ranks
