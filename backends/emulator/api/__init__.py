"""TT-NN's vocabulary: types, configs, systems and how they print: values alone."""
