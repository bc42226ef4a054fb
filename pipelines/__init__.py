"""Programs made of data and models: training, generation, atlas, evaluation, synthesis."""
