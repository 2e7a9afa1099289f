"""The rows of a batch: the original branch's and each distorted branch's."""
