"""What authors of lobes test with.

- :mod:`~kwaai_core.testing.conformance`: checks of what a role has to keep, without pytest.
- :mod:`~kwaai_core.testing.fakes`: a host, a catalog and an executor that do as they are told.
- :mod:`~kwaai_core.testing.models`: small models with random weights (``kwaai-core[testing]``).
- :mod:`~kwaai_core.testing.pytest_plugin`: fixtures that every pytest beside kwaai-core has.

Nothing is imported here: the plugin is loaded by every run of pytest, and trio is not free.
"""
