"""What is measured of a cell: quality, the token accounts, cost, and the lens of the implicit weight."""
