"""What a training needs beside model, loss and data: ranks, time and signals, the run's folder."""
