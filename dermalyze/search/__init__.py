"""The search for hyper-parameters: a study on disk, what it may try, and who stops a bad trial."""
