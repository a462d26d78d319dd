"""Present results to users: reports, the dashboard, fronts, tables of trials."""
