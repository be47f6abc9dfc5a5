"""Initial parameters of students: random, from the teacher, from a checkpoint or from a pretrained model."""
