"""What people look at: reports, the dashboard, fronts, tables of trials."""
