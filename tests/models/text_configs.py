"""The config.json of published text towers, written out."""

# text_encoder/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5
SD_1_5 = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
# text_encoder/config.json of stabilityai/stable-diffusion-2-1, where it differs
SD_2_1 = {
    **SD_1_5,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
# text_encoder_2/config.json of stabilityai/stable-diffusion-xl-base-1.0: OpenCLIP ViT-bigG
SDXL_2 = {
    **SD_1_5,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

# config.json of FacebookAI/xlm-roberta-large
XLM_R_LARGE = {
    "architectures": ["XLMRobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "xlm-roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": 250002,
}
XLM_R_BASE = {
    **XLM_R_LARGE,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
# FacebookAI/roberta-base
ROBERTA_BASE = {**XLM_R_BASE, "model_type": "roberta", "vocab_size": 50265}
# google-bert/bert-base-chinese
BERT_CHINESE = {
    **XLM_R_BASE,
    "model_type": "bert",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 21128,
}
# the text side of OFA-Sys/chinese-clip-vit-huge-patch14: RoBERTa-wwm-ext-large, a BERT by its code
CHINESE_CLIP_H = {
    **BERT_CHINESE,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
}
# BAAI/AltCLIP: what shapes the text tower
ALT_CLIP = {
    "architectures": ["AltCLIPModel"],
    "model_type": "altclip",
    "projection_dim": 768,
    "text_config": {
        "add_cross_attention": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "is_decoder": False,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "altclip_text_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "project_dim": 768,
        "type_vocab_size": 1,
        "vocab_size": 250002,
    },
}
# google/mt5-xl
MT5_XL = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 5120,
    "d_kv": 64,
    "d_model": 2048,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "mt5",
    "num_decoder_layers": 24,
    "num_heads": 32,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}
