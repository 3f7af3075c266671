"""What a compile reports, and the tables that commands print."""
