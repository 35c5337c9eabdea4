"""What IPython and the browser see: magics and output. Only this package imports IPython's display machinery."""
