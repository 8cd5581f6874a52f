"""Images as data sets: files, transforms, batches in chunks, and the checks of what a user gives."""
