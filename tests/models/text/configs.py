"""The config.json of published text towers, most of which the package does not include."""

from pea_jax.weights.builtin_configs import read_config

XLM_R_BASE = read_config("xlm-roberta-base/config.json")
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
