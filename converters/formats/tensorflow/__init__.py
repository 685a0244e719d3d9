"""What TensorFlow writes: checkpoints of both versions, SavedModels, and TensorFlow.js."""
