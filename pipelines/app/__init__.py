"""The live page: questions to a trained run, their answers, exports and teaching."""
