"""How the checkpoint that ships was made: the art, the scenes, the training and its evaluation."""
