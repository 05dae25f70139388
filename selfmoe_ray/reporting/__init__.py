"""A finished run as tables, figures and one page that opens offline."""
