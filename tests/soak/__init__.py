"""Long runs of two workers on one PostgreSQL database, with faults: ``make soak``, see CONTRIBUTING.md."""
