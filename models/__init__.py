"""What a language model is: configs, weights, layers, plans; knows the device only through ttnn."""
