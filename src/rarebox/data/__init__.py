"""Everything that knows a file format: data sets, images, and the writers of labels."""
