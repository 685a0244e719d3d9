"""HDF5 as Keras and transformers lay weights out in it, and Keras 3's archives around it."""
