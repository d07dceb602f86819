"""Everything that knows a file format: reading data sets, reading images, writing labels."""
