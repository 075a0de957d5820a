"""This service beside Dynamo's stand-alone indexer, with the same events and the same questions."""
