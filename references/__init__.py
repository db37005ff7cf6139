"""What HF transformers says about known texts, recorded once and compared with ever after."""
