"""Architectures that others wrote, in tiny configurations: the list that the compiler is run over.

`models()` maps a name such as "transformers/gpt2" to a factory; nothing is downloaded, and a third-party package is
imported only when a factory that needs it is called. The tables below say, an entry a line, which class is built,
with which configuration, and the shapes of its inputs without the batch dimension.
"""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 3
VOCABULARY = 99
Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Factory = Callable[[], Example]
Shapes = dict[str, tuple[int, ...]]


def example_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """An input called `name`: token numbers for `*ids`, a mask with padding for `*mask`, else normal noise."""
    shape = (BATCH, *shape)
    if name.endswith("ids") or name == "inputs":
        return torch.randint(5, VOCABULARY - 9, shape)
    if name == "timesteps":
        return torch.randint(0, 50, shape)
    if name == "lengths":
        return torch.tensor([12, 9, 5])
    if name == "adjacency":
        dense = (torch.rand(shape) < 0.3).float() + torch.eye(shape[-1])
        return dense / dense.sum(-1, keepdim=True)
    if name == "bbox":
        return torch.tensor([1, 2, 30, 40]).expand(shape).clone()
    if name.endswith("mask"):
        mask = torch.ones(shape, dtype=torch.int64)
        mask[-1, -2:] = 0
        return mask
    return torch.randn(shape)


def inputs(shapes: Shapes) -> dict[str, Any]:
    return {name: example_input(name, shape) for name, shape in shapes.items()}


# --- Hugging Face ---------------------------------------------------------------------------------------------------

IDS: Shapes = {"input_ids": (12,)}
MASKED: Shapes = {"input_ids": (12,), "attention_mask": (12,)}
PAIR: Shapes = {**MASKED, "decoder_input_ids": (8,)}
WAVE: Shapes = {"input_values": (800,)}
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**SPECIAL, **SIZES, "max_position_embeddings": 64}
DECODER = {**TEXT, "use_cache": False}
GROUPED = {**DECODER, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT = {**SPECIAL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
BART = {
    **SPECIAL,
    "d_model": 32,
    **{
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
    },
    "max_position_embeddings": 64,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "use_cache": False,
    "decoder_start_token_id": 1,
}
T5 = {
    **SPECIAL,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
VISION = {**SIZES, "image_size": 32, "patch_size": 8, "num_labels": 7}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 7}
SPEECH = {**SPECIAL, **SIZES, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8],
          "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
          "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}  # fmt: skip
HGNET = {
    "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "stem_channels": [3, 8, 8], "depths": [1, 1, 1, 1],
    "stage_in_channels": [8, 8, 16, 24], "stage_mid_channels": [4, 8, 12, 16], "stage_num_blocks": [1, 1, 1, 1],
    "stage_out_channels": [8, 16, 24, 32], "stage_numb_of_layers": [2, 2, 2, 2], "num_labels": 7,
    "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip
BACKBONE = {
    **STAGES,
    "model_type": "resnet",
    "embedding_size": 8,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DETR = {**BART, "backbone_config": BACKBONE, "num_queries": 5, "num_labels": 7}
RT_BACKBONE = {
    **STAGES,
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
RT_DETR = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 64,
    "num_queries": 5,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_denoising": 0,
    "num_labels": 7,
}
FORECAST: Shapes = {
    "past_values": (24,),
    "past_time_features": (24, 2),
    "past_observed_mask": (24,),
    "future_values": (8,),
    "future_time_features": (8, 2),
}
SERIES = {
    "prediction_length": 8,
    "context_length": 16,
    "lags_sequence": [1, 2, 8],
    "num_time_features": 2,
    "d_model": 16,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "use_cache": False,
}
TOWERS = {
    "text_config": {**TEXT, "projection_dim": 16, "num_labels": 2},
    "vision_config": {**VISION, "projection_dim": 16},
    "projection_dim": 16,
}


def image(size: int = 32, channels: int = 3) -> Shapes:
    return {"pixel_values": (channels, size, size)}


TRANSFORMERS: dict[str, tuple[str, Shapes, dict[str, Any]]] = {
    # encoders of text
    "albert": ("AlbertForMaskedLM", MASKED, {**TEXT, "embedding_size": 16}),
    "bert": ("BertForMaskedLM", MASKED, TEXT),
    "big_bird": ("BigBirdForMaskedLM", {"input_ids": (64,), "attention_mask": (64,)},
                 {**TEXT, "block_size": 4, "num_random_blocks": 1}),
    "canine": ("CanineForSequenceClassification", {"input_ids": (64,), "attention_mask": (64,)},
               {**TEXT, "num_hash_buckets": 64, "local_transformer_stride": 8}),
    "convbert": ("ConvBertForMaskedLM", MASKED, {**TEXT, "embedding_size": 32}),
    "data2vec_text": ("Data2VecTextForMaskedLM", MASKED, TEXT),
    "deberta": ("DebertaForMaskedLM", MASKED, {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta_v2": ("DebertaV2ForMaskedLM", MASKED,
                   {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}),
    "distilbert": ("DistilBertForMaskedLM", MASKED,
                   {**SPECIAL, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "electra": ("ElectraForMaskedLM", MASKED, {**TEXT, "embedding_size": 16}),
    "ernie": ("ErnieForMaskedLM", MASKED, TEXT),
    "esm": ("EsmForMaskedLM", MASKED, {**TEXT, "mask_token_id": 4, "position_embedding_type": "rotary"}),
    "eurobert": ("EuroBertForMaskedLM", MASKED, GROUPED),
    "flaubert": ("FlaubertWithLMHeadModel", MASKED, {"n_words": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "fnet": ("FNetForMaskedLM", IDS, TEXT),
    "funnel": ("FunnelForMaskedLM", MASKED, {**SPECIAL, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8,
                                              "d_inner": 64, "num_decoder_layers": 1}),
    "ibert": ("IBertForMaskedLM", MASKED, TEXT),
    "layoutlm": ("LayoutLMForMaskedLM", {**MASKED, "bbox": (12, 4)}, {**TEXT, "max_2d_position_embeddings": 64}),
    "lilt": ("LiltForTokenClassification", {**MASKED, "bbox": (12, 4)},
             {**TEXT, "hidden_size": 48, "max_2d_position_embeddings": 64}),
    "longformer": ("LongformerForMaskedLM", MASKED, {**TEXT, "attention_window": 4}),
    "luke": ("LukeModel", MASKED, {**TEXT, "entity_vocab_size": 20, "entity_emb_size": 16}),
    "megatron_bert": ("MegatronBertForMaskedLM", MASKED, TEXT),
    "mobilebert": ("MobileBertForMaskedLM", MASKED, {**TEXT, "embedding_size": 32, "intra_bottleneck_size": 32}),
    "modernbert": ("ModernBertForMaskedLM", MASKED, {**TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "mpnet": ("MPNetForMaskedLM", MASKED, TEXT),
    "mra": ("MraForMaskedLM", {"input_ids": (64,)}, TEXT),
    "nomic_bert": ("NomicBertForMaskedLM", MASKED, TEXT),
    "nystromformer": ("NystromformerForMaskedLM", IDS, {**TEXT, "num_landmarks": 4, "segment_means_seq_len": 12}),
    "perceiver": ("PerceiverForMaskedLM", {"inputs": (12,), "attention_mask": (12,)},
                  {**SPECIAL, "num_latents": 6, "d_latents": 32, "d_model": 32, "num_blocks": 1, "qk_channels": 32,
                   "num_self_attends_per_block": 2, "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
                   "v_channels": 32, "max_position_embeddings": 12}),
    "reformer": ("ReformerModelWithLMHead", {"input_ids": (16,)},
                 {**DECODER, "is_decoder": True, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16],
                  "attention_head_size": 8, "feed_forward_size": 64, "attn_layers": ["local", "lsh"], "num_buckets": 2,
                  "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "hash_seed": 0,
                  "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}),
    "rembert": ("RemBertForMaskedLM", MASKED, {**TEXT, "input_embedding_size": 16, "output_embedding_size": 48}),
    "roberta": ("RobertaForSequenceClassification", MASKED, {**TEXT, "num_labels": 7}),
    "roberta_prelayernorm": ("RobertaPreLayerNormForMaskedLM", MASKED, TEXT),
    "roc_bert": ("RoCBertForMaskedLM", MASKED, {**TEXT, "pronunciation_vocab_size": 20, "pronunciation_embed_dim": 8,
                                                "shape_vocab_size": 20, "shape_embed_dim": 8}),
    "roformer": ("RoFormerForMaskedLM", MASKED, {**TEXT, "embedding_size": 32}),
    "splinter": ("SplinterForQuestionAnswering", IDS, TEXT),
    "squeezebert": ("SqueezeBertForMaskedLM", MASKED, {**TEXT, "embedding_size": 32}),
    "tapas": ("TapasForMaskedLM", MASKED, TEXT),
    "xlm": ("XLMWithLMHeadModel", MASKED, {"n_words": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "xlm_roberta_xl": ("XLMRobertaXLForTokenClassification", MASKED, TEXT),
    "xlnet": ("XLNetLMHeadModel", MASKED, {**SPECIAL, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
    "xmod": ("XmodForMaskedLM", MASKED, {**TEXT, "languages": ["en_XX"], "default_language": "en_XX"}),
    "yoso": ("YosoForMaskedLM", MASKED, {**TEXT, "use_expectation": True}),
    # decoders of text
    "bamba": ("BambaForCausalLM", IDS, {**GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16,
                                        "mamba_d_state": 8, "mamba_chunk_size": 4, "mamba_n_groups": 1}),
    "biogpt": ("BioGptForCausalLM", MASKED, DECODER),
    "bitnet": ("BitNetForCausalLM", IDS, GROUPED),
    "bloom": ("BloomForCausalLM", MASKED,
              {**SPECIAL, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}),
    "codegen": ("CodeGenForCausalLM", IDS, {**GPT, "rotary_dim": 4}),
    "cohere": ("CohereForCausalLM", IDS, GROUPED),
    "cohere2": ("Cohere2ForCausalLM", IDS, GROUPED),
    "ctrl": ("CTRLLMHeadModel", IDS, {**GPT, "dff": 64}),
    "dbrx": ("DbrxForCausalLM", IDS, {**SPECIAL, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
                                      "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
                                      "use_cache": False,
                                      "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
                                                     "hidden_size": 32}}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", IDS,
                    {**EXPERTS, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                     "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                     "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", IDS,
                    {**EXPERTS, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
                     "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                     "num_key_value_heads": 4, "n_group": 2, "topk_group": 1}),
    "diffllama": ("DiffLlamaForCausalLM", IDS, GROUPED),
    "doge": ("DogeForCausalLM", IDS, GROUPED),
    "exaone4": ("Exaone4ForCausalLM", IDS, GROUPED),
    "falcon": ("FalconForCausalLM", IDS, DECODER),
    "falcon_mamba": ("FalconMambaForCausalLM", IDS, {**DECODER, "state_size": 8, "time_step_rank": 4}),
    "gemma": ("GemmaForCausalLM", IDS, GROUPED),
    "gemma2": ("Gemma2ForCausalLM", IDS, {**GROUPED, "sliding_window": 4}),
    "gemma3": ("Gemma3ForCausalLM", IDS, {**GROUPED, "sliding_window": 4}),
    "glm": ("GlmForCausalLM", IDS, GROUPED),
    "glm4": ("Glm4ForCausalLM", IDS, GROUPED),
    "gpt2": ("GPT2LMHeadModel", IDS, GPT),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", IDS, GPT),
    "gpt_neo": ("GPTNeoForCausalLM", IDS, {**SPECIAL, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                                           "attention_types": [[["global", "local"], 1]], "window_size": 4,
                                           "max_position_embeddings": 64, "use_cache": False}),
    "gpt_neox": ("GPTNeoXForCausalLM", IDS, DECODER),
    "gpt_oss": ("GptOssForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4, "sliding_window": 4}),
    "gptj": ("GPTJForCausalLM", IDS, {**GPT, "rotary_dim": 4}),
    "granite": ("GraniteForCausalLM", IDS, GROUPED),
    "granitemoe": ("GraniteMoeForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4}),
    "helium": ("HeliumForCausalLM", IDS, GROUPED),
    "jamba": ("JambaForCausalLM", IDS, {**EXPERTS, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                                        "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "jetmoe": ("JetMoeForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4, "kv_channels": 8,
                                          "num_key_value_heads": 4}),
    "lfm2": ("Lfm2ForCausalLM", IDS, {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "llama": ("LlamaForCausalLM", IDS, GROUPED),
    "mamba": ("MambaForCausalLM", IDS, {**DECODER, "state_size": 8, "time_step_rank": 4}),
    "mamba2": ("Mamba2ForCausalLM", IDS, {**DECODER, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1,
                                          "chunk_size": 4}),
    "minimax": ("MiniMaxForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4, "block_size": 4}),
    "mistral": ("MistralForCausalLM", IDS, {**GROUPED, "sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4}),
    "modernbert_decoder": ("ModernBertDecoderForCausalLM", IDS, {**DECODER, "cls_token_id": 1, "sep_token_id": 2}),
    "nemotron": ("NemotronForCausalLM", IDS, GROUPED),
    "olmo": ("OlmoForCausalLM", IDS, GROUPED),
    "olmo2": ("Olmo2ForCausalLM", IDS, GROUPED),
    "olmoe": ("OlmoeForCausalLM", IDS, {**EXPERTS, "num_experts": 4}),
    "openai": ("OpenAIGPTLMHeadModel", IDS, GPT),
    "opt": ("OPTForCausalLM", MASKED, {**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "persimmon": ("PersimmonForCausalLM", IDS, DECODER),
    "phi": ("PhiForCausalLM", IDS, DECODER),
    "phi3": ("Phi3ForCausalLM", IDS, GROUPED),
    "phimoe": ("PhimoeForCausalLM", IDS, {**EXPERTS, "num_local_experts": 4}),
    "qwen2": ("Qwen2ForCausalLM", IDS, GROUPED),
    "qwen2_moe": ("Qwen2MoeForCausalLM", IDS, {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3ForCausalLM", IDS, GROUPED),
    "qwen3_moe": ("Qwen3MoeForCausalLM", IDS, {**EXPERTS, "num_experts": 4}),
    "qwen3_next": ("Qwen3NextForCausalLM", IDS,
                   {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
                    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                    "layer_types": ["linear_attention", "full_attention"]}),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", IDS,
                        {**GROUPED, "lru_width": 32, "attention_window_size": 8,
                         "block_types": ["recurrent", "attention"]}),
    "rwkv": ("RwkvForCausalLM", IDS, {**SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64,
                                      "use_cache": False}),
    "smollm3": ("SmolLM3ForCausalLM", IDS, GROUPED),
    "stablelm": ("StableLmForCausalLM", IDS, GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", IDS, GROUPED),
    "xglm": ("XGLMForCausalLM", MASKED, {**SPECIAL, "d_model": 32, "ffn_dim": 64, "num_layers": 2,
                                         "attention_heads": 4, "max_position_embeddings": 64, "use_cache": False}),
    "xlstm": ("xLSTMForCausalLM", {"input_ids": (16,)},
              {**SPECIAL, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 16,
               "use_cache": False}),
    "zamba2": ("Zamba2ForCausalLM", IDS,
               {**DECODER, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"],
                "mamba_d_state": 8, "mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 4,
                "num_mem_blocks": 1, "use_mem_rope": True, "mamba_expand": 2}),
    # sequence to sequence
    "bart": ("BartForConditionalGeneration", PAIR, BART),
    "bigbird_pegasus": ("BigBirdPegasusForConditionalGeneration", PAIR, {**BART, "attention_type": "original_full"}),
    "blenderbot": ("BlenderbotForConditionalGeneration", PAIR, BART),
    "fsmt": ("FSMTForConditionalGeneration", PAIR,
             {**BART, "langs": ["en", "de"], "src_vocab_size": 99, "tgt_vocab_size": 99}),
    "led": ("LEDForConditionalGeneration", PAIR,
            {**BART, "attention_window": 4, "max_encoder_position_embeddings": 64,
             "max_decoder_position_embeddings": 64}),
    "longt5": ("LongT5ForConditionalGeneration", PAIR, {**T5, "local_radius": 3}),
    "m2m_100": ("M2M100ForConditionalGeneration", PAIR, BART),
    "marian": ("MarianMTModel", PAIR, BART),
    "mbart": ("MBartForConditionalGeneration", PAIR, BART),
    "nllb_moe": ("NllbMoeForConditionalGeneration", PAIR,
                 {**BART, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 8}),
    "pegasus": ("PegasusForConditionalGeneration", PAIR, BART),
    "pegasus_x": ("PegasusXForConditionalGeneration", PAIR, {**BART, "block_size": 4, "num_global_tokens": 2}),
    "plbart": ("PLBartForConditionalGeneration", PAIR, BART),
    "prophetnet": ("ProphetNetForConditionalGeneration", PAIR,
                   {**SPECIAL, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2,
                    "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 64,
                    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "use_cache": False}),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", PAIR,
                            {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
                             "expert_capacity": 8}),
    "t5": ("T5ForConditionalGeneration", PAIR, T5),
    "umt5": ("UMT5ForConditionalGeneration", PAIR, T5),
    # images
    "beit": ("BeitForImageClassification", image(), VISION),
    "bit": ("BitForImageClassification", image(), {**STAGES, "embedding_size": 8, "num_groups": 4}),
    "convnext": ("ConvNextForImageClassification", image(), STAGES),
    "convnextv2": ("ConvNextV2ForImageClassification", image(), STAGES),
    "cvt": ("CvtForImageClassification", image(),
            {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 7}),
    "deit": ("DeiTForImageClassification", image(), VISION),
    "dinov2": ("Dinov2ForImageClassification", image(), VISION),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", image(), VISION),
    "dinov3_vit": ("DINOv3ViTModel", image(), VISION),
    "dpt": ("DPTForDepthEstimation", image(),
            {**VISION, "backbone_out_indices": [0, 1, 2, 3], "num_hidden_layers": 4, "is_hybrid": False,
             "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}),
    "efficientnet": ("EfficientNetForImageClassification", image(),
                     {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
                      "num_labels": 7}),
    "focalnet": ("FocalNetForImageClassification", image(),
                 {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32],
                  "focal_levels": [2, 2], "focal_windows": [3, 3], "num_labels": 7}),
    "glpn": ("GLPNForDepthEstimation", image(64), {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                                                   "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}),
    "hgnet_v2": ("HGNetV2ForImageClassification", image(), HGNET),
    "hiera": ("HieraForImageClassification", image(64),
              {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "num_labels": 7,
               "masked_unit_size": [4, 4], "num_query_pool": 2, "masked_unit_attention": [True, True, False]}),
    "ijepa": ("IJepaForImageClassification", image(), VISION),
    "imagegpt": ("ImageGPTForCausalImageModeling", IDS, {**GPT, "vocab_size": 100}),
    "levit": ("LevitForImageClassification", image(64),
              {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
               "key_dim": [8, 8, 8], "num_labels": 7}),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", image(), {"depth_multiplier": 0.25, "num_labels": 7}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", image(), {"depth_multiplier": 0.35, "num_labels": 7}),
    "mobilevit": ("MobileViTForImageClassification", image(64),
                  {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
                   "num_labels": 7}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", image(64), {"width_multiplier": 0.25, "num_labels": 7}),
    "poolformer": ("PoolFormerForImageClassification", image(), STAGES),
    "pvt": ("PvtForImageClassification", image(), {**STAGES, "image_size": 32, "hidden_sizes": [16, 32, 40, 64]}),
    "pvt_v2": ("PvtV2ForImageClassification", image(), {**STAGES, "hidden_sizes": [16, 32, 40, 64]}),
    "regnet": ("RegNetForImageClassification", image(), {**STAGES, "embedding_size": 8, "groups_width": 4}),
    "resnet": ("ResNetForImageClassification", image(), {**STAGES, "embedding_size": 8}),
    "segformer": ("SegformerForSemanticSegmentation", image(64),
                  {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16}),
    "swiftformer": ("SwiftFormerForImageClassification", image(),
                    {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 7, "image_size": 32}),
    "swin": ("SwinForImageClassification", image(),
             {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
              "window_size": 4, "num_labels": 7}),
    "swin2sr": ("Swin2SRForImageSuperResolution", image(16),
                {"image_size": 16, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
    "swinv2": ("Swinv2ForImageClassification", image(),
               {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                "window_size": 4, "num_labels": 7}),
    "textnet": ("TextNetForImageClassification", image(64),
                {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 32], "num_labels": 7}),
    "timesformer": ("TimesformerForVideoClassification", {"pixel_values": (4, 3, 32, 32)}, {**VISION, "num_frames": 4}),
    "videomae": ("VideoMAEForVideoClassification", {"pixel_values": (4, 3, 32, 32)}, {**VISION, "num_frames": 4}),
    "vit": ("ViTForImageClassification", image(), VISION),
    "vit_mae": ("ViTMAEForPreTraining", image(), {**VISION, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
                                                  "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}),
    "vit_msn": ("ViTMSNForImageClassification", image(), VISION),
    "vitdet": ("VitDetModel", image(), {**VISION, "num_attention_heads": 4}),
    "vivit": ("VivitForVideoClassification", {"pixel_values": (4, 3, 32, 32)},
              {**VISION, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    "yolos": ("YolosForObjectDetection", image(), {**VISION, "image_size": [32, 32], "num_detection_tokens": 5}),
    # sound
    "audio_spectrogram_transformer": ("ASTForAudioClassification", {"input_values": (24, 16)},
                                      {**SIZES, "patch_size": 4, "frequency_stride": 4, "time_stride": 4,
                                       "max_length": 24, "num_mel_bins": 16, "num_labels": 7}),
    "data2vec_audio": ("Data2VecAudioForCTC", WAVE, SPEECH),
    "hubert": ("HubertForCTC", WAVE, SPEECH),
    "moonshine": ("MoonshineForConditionalGeneration", {"input_values": (1600,), "decoder_input_ids": (8,)},
                  {**SPECIAL, "hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 2,
                   "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
                   "encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4, "use_cache": False}),
    "sew": ("SEWForCTC", WAVE, {**SPEECH, "squeeze_factor": 2}),
    "speech_to_text": ("Speech2TextForConditionalGeneration",
                       {"input_features": (32, 16), "attention_mask": (32,), "decoder_input_ids": (8,)},
                       {**BART, "input_feat_per_channel": 16, "conv_channels": 16, "max_source_positions": 64,
                        "max_target_positions": 64, "conv_kernel_sizes": [5, 5]}),
    "unispeech": ("UniSpeechForCTC", WAVE, SPEECH),
    "wav2vec2": ("Wav2Vec2ForCTC", WAVE, SPEECH),
    "wav2vec2_bert": ("Wav2Vec2BertForCTC", {"input_features": (20, 16)},
                      {**SPEECH, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3}),
    "wav2vec2_conformer": ("Wav2Vec2ConformerForCTC", WAVE, {**SPEECH, "conv_depthwise_kernel_size": 3}),
    "wavlm": ("WavLMForCTC", WAVE, SPEECH),
    "whisper": ("WhisperForConditionalGeneration", {"input_features": (16, 40), "decoder_input_ids": (8,)},
                {**BART, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20}),
    # images and text
    "blip": ("BlipModel", {**MASKED, **image()},
             {"text_config": {**TEXT, "encoder_hidden_size": 32, "projection_dim": 16}, "vision_config": VISION,
              "projection_dim": 16}),
    "chinese_clip": ("ChineseCLIPModel", {**MASKED, **image()}, TOWERS),
    "clip": ("CLIPModel", {**MASKED, **image()}, TOWERS),
    "flava": ("FlavaModel", {**MASKED, **image()},
              {"text_config": TEXT, "image_config": VISION, "multimodal_config": SIZES, "hidden_size": 32,
               "projection_dim": 16}),
    "git": ("GitForCausalLM", {**MASKED, **image()}, {**DECODER, "vision_config": VISION}),
    "siglip": ("SiglipModel", {**IDS, **image()}, TOWERS),
    "vilt": ("ViltModel", {**MASKED, **image()}, {**TEXT, **VISION}),
    "visual_bert": ("VisualBertModel", {**IDS, "visual_embeds": (5, 16)}, {**TEXT, "visual_embedding_dim": 16}),
    "lxmert": ("LxmertModel", {**IDS, "visual_feats": (5, 16), "visual_pos": (5, 4)},
               {**TEXT, "l_layers": 1, "r_layers": 1, "x_layers": 1, "visual_feat_dim": 16}),
    # detection, with a backbone of the same package
    "conditional_detr": ("ConditionalDetrForObjectDetection", image(64), DETR),
    "d_fine": ("DFineForObjectDetection", image(64),
               {**RT_DETR, "backbone_config": {**HGNET, "model_type": "hgnet_v2"}}),
    "dab_detr": ("DabDetrForObjectDetection", image(64),
                 {**DETR, "hidden_size": 32, "decoder_num_attention_heads": 4}),
    "deformable_detr": ("DeformableDetrForObjectDetection", image(64), DETR),
    "detr": ("DetrForObjectDetection", image(64), DETR),
    "mask2former": ("Mask2FormerForUniversalSegmentation", image(64),
                    {**DETR, "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "dim_feedforward": 32,
                     "encoder_feedforward_dim": 32, "num_attention_heads": 4, "encoder_layers": 1,
                     "decoder_layers": 3}),
    "maskformer": ("MaskFormerForInstanceSegmentation", image(64),
                   {"backbone_config": BACKBONE, "fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 7,
                    "decoder_config": {**DETR, "model_type": "detr"}}),
    "rt_detr": ("RTDetrForObjectDetection", image(64), {**RT_DETR, "backbone_config": RT_BACKBONE}),
    "table_transformer": ("TableTransformerForObjectDetection", image(64), DETR),
    "upernet": ("UperNetForSemanticSegmentation", image(64),
                {"backbone_config": {**BACKBONE, "model_type": "convnext"}, "hidden_size": 16, "num_labels": 7,
                 "auxiliary_in_channels": 24, "auxiliary_channels": 8}),
    # time series
    "autoformer": ("AutoformerForPrediction", FORECAST, SERIES),
    "decision_transformer": ("DecisionTransformerModel",
                             {"states": (6, 5), "actions": (6, 2), "rewards": (6, 1), "returns_to_go": (6, 1),
                              "timesteps": (6,), "attention_mask": (6,)},
                             {**GPT, "state_dim": 5, "act_dim": 2, "hidden_size": 32, "max_ep_len": 64}),
    "informer": ("InformerForPrediction", FORECAST, SERIES),
    "patchtsmixer": ("PatchTSMixerForPrediction", {"past_values": (32, 3)},
                     {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 3,
                      "d_model": 16, "num_layers": 2, "prediction_length": 4}),
    "patchtst": ("PatchTSTForPrediction", {"past_values": (32, 3)},
                 {"context_length": 32, "patch_length": 8, "patch_stride": 8, "num_input_channels": 3, "d_model": 16,
                  "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32, "prediction_length": 4}),
    "time_series_transformer": ("TimeSeriesTransformerForPrediction", FORECAST, SERIES),
}  # fmt: skip


def build_transformers(name: str) -> Example:
    class_name, shapes, config = TRANSFORMERS[name]
    kind = getattr(importlib.import_module("transformers"), class_name)
    return kind(kind.config_class(**copy.deepcopy(config))), (), inputs(shapes)


# --- MONAI and the differentiable neural computer --------------------------------------------------------------------

GRAY: Shapes = {"x": (1, 16, 16)}
CUBE: Shapes = {"x": (1, 16, 16, 16)}
PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
LADDER = {"channels": (4, 8, 16), "strides": (2, 2)}
LATENT = {"channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4}
VIT = {"in_channels": 1, "img_size": (16, 16), "hidden_size": 32, "mlp_dim": 64, "num_heads": 4, "spatial_dims": 2}

MONAI: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "AttentionUnet": (GRAY, {**PLANE, **LADDER}),
    "AutoEncoder": (GRAY, {**PLANE, "channels": (4, 8), "strides": (2, 2)}),
    "AutoencoderKL": (GRAY, {"spatial_dims": 2, **LATENT}),
    "BasicUNet": ({"x": (1, 32, 32)}, {**PLANE, "features": (4, 4, 8, 8, 16, 4)}),
    "BasicUNetPlusPlus": ({"x": (1, 32, 32)}, {**PLANE, "features": (4, 4, 8, 8, 16, 4)}),
    "Classifier": (GRAY, {"in_shape": (1, 16, 16), "classes": 7, **LADDER}),
    "ControlNet": ({**GRAY, "timesteps": (), "controlnet_cond": (1, 32, 32)},
                   {"spatial_dims": 2, "in_channels": 1, "num_head_channels": 4, **LATENT,
                    "conditioning_embedding_num_channels": (4, 8)}),
    "Critic": (GRAY, {"in_shape": (1, 16, 16), **LADDER}),
    "DecoderOnlyTransformer": (IDS, {"num_tokens": 99, "max_seq_len": 16, "attn_layers_dim": 32,
                                     "attn_layers_depth": 2, "attn_layers_heads": 4}),
    "DenseNet": ({"x": (1, 32, 32)}, {**PLANE, "init_features": 8, "growth_rate": 4, "block_config": (2, 2, 2)}),
    "DiffusionModelUNet": ({**GRAY, "timesteps": ()}, {**PLANE, "num_head_channels": 4, **LATENT}),
    "Discriminator": (GRAY, {"in_shape": (1, 16, 16), **LADDER}),
    "DynUNet": (GRAY, {**PLANE, "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2),
                       "filters": (4, 8, 16)}),
    "EfficientNetBN": ({"x": (1, 32, 32)},
                       {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1, "num_classes": 7}),
    "FullyConnectedNet": ({"x": (10,)}, {"in_channels": 10, "out_channels": 7, "hidden_channels": (16, 16),
                                         "dropout": 0.1}),
    "Generator": ({"x": (8,)}, {"latent_shape": (8,), "start_shape": (4, 4, 4), "channels": (8, 4, 1),
                                "strides": (2, 2, 1)}),
    "GlobalNet": (GRAY, {"image_size": [16, 16], "spatial_dims": 2, "in_channels": 1, "num_channel_initial": 4,
                         "depth": 2}),
    "HighResNet": (GRAY, {**PLANE, "layer_params": (
        {"name": "conv_0", "n_features": 4, "kernel_size": 3},
        {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 2},
        {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 2},
        {"name": "conv_1", "n_features": 8, "kernel_size": 1}, {"name": "conv_2", "kernel_size": 1})}),
    "LocalNet": (GRAY, {**PLANE, "num_channel_initial": 4, "extract_levels": (0, 1, 2)}),
    "MaskedAutoEncoderViT": (GRAY, {**VIT, "patch_size": 4, "num_layers": 2, "decoder_hidden_size": 16,
                                    "decoder_mlp_dim": 32, "decoder_num_layers": 1, "decoder_num_heads": 2}),
    "MedNeXt": (GRAY, {**PLANE, "init_filters": 4, "kernel_size": 3, "blocks_down": (1, 1), "blocks_bottleneck": 1,
                       "blocks_up": (1, 1)}),
    "MultiScalePatchDiscriminator": ({"x": (1, 32, 32)},
                                     {"num_d": 2, "num_layers_d": 1, "spatial_dims": 2, "channels": 4, "in_channels": 1,
                                      "minimum_size_im": 32, "kernel_size": 3}),
    "PatchDiscriminator": ({"x": (1, 32, 32)}, {"spatial_dims": 2, "channels": 4, "in_channels": 1, "num_layers_d": 2}),
    "Quicknat": ({"x": (1, 32, 32)}, {"num_classes": 5, "num_filters": 8}),
    "RegUNet": (GRAY, {**PLANE, "num_channel_initial": 4, "depth": 2}),
    "Regressor": (GRAY, {"in_shape": (1, 16, 16), "out_shape": (3,), **LADDER}),
    "ResNet": (GRAY, {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 16, 16], "spatial_dims": 2,
                      "n_input_channels": 1, "num_classes": 7}),
    "SEResNet50": ({"x": (1, 32, 32)}, {"spatial_dims": 2, "in_channels": 1, "layers": (1, 1, 1, 1), "inplanes": 8,
                                        "num_classes": 7}),
    "SPADEDiffusionModelUNet": ({**GRAY, "timesteps": (), "seg": (3, 16, 16)},
                                {**PLANE, "label_nc": 3, "num_head_channels": 4, **LATENT,
                                 "spade_intermediate_channels": 8}),
    "SPADENet": ({"seg": (3, 16, 16), "x": (1, 16, 16)},
                 {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "label_nc": 3, "input_shape": (16, 16),
                  "channels": [16, 8], "z_dim": 8, "spade_intermediate_channels": 8}),
    "SegResNet": (GRAY, {**PLANE, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
    "SegResNetDS": (GRAY, {**PLANE, "init_filters": 8, "blocks_down": (1, 1, 1), "dsdepth": 2}),
    "SegResNetVAE": (GRAY, {**PLANE, "input_image_size": (16, 16), "blocks_down": (1, 1, 1), "blocks_up": (1, 1),
                            "vae_nz": 16}),
    "SwinUNETR": ({"x": (1, 64, 64)}, {**PLANE, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4,
                                       "feature_size": 12}),
    "UNETR": (GRAY, {**VIT, "out_channels": 2, "feature_size": 4}),
    "UNet": (GRAY, {**PLANE, **LADDER, "num_res_units": 2}),
    "VNet": ({"x": (1, 16, 16)}, {**PLANE, "dropout_dim": 2}),
    "VQVAE": (GRAY, {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 16), "num_res_layers": 1,
                     "num_res_channels": (8, 16), "downsample_parameters": ((2, 4, 1, 1), (2, 4, 1, 1)),
                     "upsample_parameters": ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)), "embedding_dim": 8}),
    "VarAutoEncoder": (GRAY, {"spatial_dims": 2, "in_shape": (1, 16, 16), "out_channels": 1, "latent_size": 4,
                             "channels": (4, 8), "strides": (2, 2)}),
    "VarFullyConnectedNet": ({"x": (10,)}, {"in_channels": 10, "out_channels": 10, "latent_size": 4,
                                            "encode_channels": (16,), "decode_channels": (16,)}),
    "ViT": (GRAY, {**VIT, "patch_size": 4, "num_layers": 2, "classification": True}),
    "ViTAutoEnc": (GRAY, {**VIT, "patch_size": 4, "num_layers": 2, "deconv_chns": 4}),
    "VoxelMorphUNet": ({"x": (2, 16, 16)}, {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 4,
                              "channels": (4, 8, 8, 8), "final_conv_channels": (4, 4)}),
}  # fmt: skip

NEEDS_EINOPS = {
    "AutoencoderKL", "ControlNet", "DecoderOnlyTransformer", "DiffusionModelUNet", "MaskedAutoEncoderViT",
    "SPADEDiffusionModelUNet", "SwinUNETR", "UNETR", "ViT", "ViTAutoEnc",
}  # fmt: skip

DNC: dict[str, dict[str, Any]] = {
    "DNC": {},
    "DNC-gru": {"rnn_type": "gru", "share_memory": False, "num_layers": 2},
    "DNC-independent": {"rnn_type": "rnn", "independent_linears": True},
}


def build_monai(name: str) -> Example:
    shapes, config = MONAI[name]
    kind = getattr(importlib.import_module("monai.networks.nets"), name)
    return kind(**copy.deepcopy(config)), tuple(inputs(shapes).values()), {}


def build_dnc(name: str) -> Example:
    kind = getattr(importlib.import_module("dnc"), name.split("-")[0])
    model = kind(**{"input_size": 6, "hidden_size": 16, "nr_cells": 8, "read_heads": 2, "cell_size": 5, **DNC[name]})
    return model, (torch.randn(BATCH, 6, 6),), {}


# --- nets as people write them in plain torch -------------------------------------------------------------------------


class LSTMTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(32, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0])


class PackedGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.gru = nn.GRU(16, 24, batch_first=True)
        self.head = nn.Linear(24, 7)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


class Seq2Seq(nn.Module):
    """Teacher forcing; every step of the decoder attends to the encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.encoder = nn.GRU(16, 24, batch_first=True)
        self.cell = nn.GRUCell(16 + 24, 24)
        self.query = nn.Linear(24, 24)
        self.head = nn.Linear(48, VOCABULARY)

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        memory, last = self.encoder(self.embedding(source_ids))
        state, context = last[0], memory.mean(1)
        logits = []
        for token in self.embedding(target_ids).unbind(1):
            state = self.cell(torch.cat([token, context], -1), state)
            weights = torch.einsum("bd,btd->bt", self.query(state), memory).softmax(-1)
            context = torch.einsum("bt,btd->bd", weights, memory)
            logits.append(self.head(torch.cat([state, context], -1)))
        return torch.stack(logits, 1)


class WaveNet(nn.Module):
    def __init__(self, channels: int = 16, layers: int = 5) -> None:
        super().__init__()
        self.entry = nn.Conv1d(1, channels, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 2, dilation=2**i) for i in range(layers))
        self.mix = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        total = torch.zeros_like(x)
        for i, (dilated, mix) in enumerate(zip(self.dilated, self.mix, strict=True)):
            filtered, gate = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            residual, skip = mix(filtered.tanh() * gate.sigmoid()).chunk(2, 1)
            x, total = x + residual, total + skip
        return self.head(total)


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 9))
        self.local = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 7))

    def forward(self, points: Tensor) -> Tensor:
        turn = self.align(points).amax(1).view(-1, 3, 3) + torch.eye(3)
        features = self.local((points @ turn).transpose(1, 2))
        return self.head(features.max(dim=2).values)


class GraphConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((8, 16), (16, 16), (16, 7)))

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            nodes = F.dropout(F.relu(adjacency @ layer(nodes)), 0.2, self.training)
        return (adjacency @ self.layers[-1](nodes)).log_softmax(-1)


class MixtureOfExperts(nn.Module):
    """Each expert sees only the rows routed to it: how many there are depends on the data."""

    def __init__(self, experts: int = 4, width: int = 16) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(experts)
        )
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weight, choice = self.router(rows).softmax(-1).topk(2, -1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, slot = torch.where(choice == number)
            if row.numel() > 0:
                out = out.index_add(0, row, expert(rows[row]) * weight[row, slot, None])
        return self.head((rows + out).view_as(x))


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 8), nn.Linear(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x.flatten(1))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(sample).view_as(x), mean, log_variance


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(400, 16),
        )
        self.head = nn.Linear(16, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.tower(left) - self.tower(right)).abs())


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(c, 2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm_2(x))


class NanoGPT(nn.Module):
    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(NanoBlock(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LayerNormLSTM(nn.Module):
    """A recurrent cell written by hand, with its loop over time."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.gates = nn.Linear(8 + width, 4 * width)
        self.norm = nn.LayerNorm(4 * width)
        self.head = nn.Linear(width, 7)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], self.width)
        for t in range(x.shape[1]):
            i, f, o, g = self.norm(self.gates(torch.cat([x[:, t], hidden], 1))).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.head(hidden)


class EarlyExit(nn.Module):
    """A branch on a value: a confident batch skips the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 32)
        self.exit, self.head = nn.Linear(32, 7), nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        early = self.exit(x)
        if early.softmax(-1).amax(-1).min() > 0.9:
            return early
        return early + self.head(self.second(x).relu())


def dcgan_discriminator() -> nn.Module:
    sizes = (3, 8, 16, 32)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, inplace=True))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    return nn.Sequential(*blocks, nn.Conv2d(32, 1, 4), nn.Flatten())


def dcgan_generator() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def transformer_decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 2)


TORCH: dict[str, tuple[Callable[[], nn.Module], Shapes]] = {
    "DCGANDiscriminator": (dcgan_discriminator, {"x": (3, 32, 32)}),
    "DCGANGenerator": (dcgan_generator, {"x": (8,)}),
    "EarlyExit": (EarlyExit, {"x": (16,)}),
    "GraphConvNet": (GraphConvNet, {"nodes": (12, 8), "adjacency": (12, 12)}),
    "LSTMTagger": (LSTMTagger, {"ids": (12,)}),
    "LayerNormLSTM": (LayerNormLSTM, {"x": (12, 8)}),
    "MixtureOfExperts": (MixtureOfExperts, {"x": (12, 16)}),
    "NanoGPT": (NanoGPT, {"ids": (12,)}),
    "PackedGRU": (PackedGRU, {"ids": (12,), "lengths": ()}),
    "PointNet": (PointNet, {"points": (24, 3)}),
    "Seq2Seq": (Seq2Seq, {"source_ids": (12,), "target_ids": (8,)}),
    "Siamese": (Siamese, {"left": (1, 16, 16), "right": (1, 16, 16)}),
    "Transformer": (lambda: nn.Transformer(32, 4, 2, 2, 64, batch_first=True), {"source": (12, 32), "target": (8, 32)}),
    "TransformerDecoder": (transformer_decoder, {"target": (8, 32), "memory": (12, 32)}),
    "TransformerEncoder": (transformer_encoder, {"x": (12, 32)}),
    "VAE": (VAE, {"x": (1, 8, 8)}),
    "WaveNet": (WaveNet, {"x": (1, 64)}),
}


def build_torch(name: str) -> Example:
    kind, shapes = TORCH[name]
    return kind(), tuple(inputs(shapes).values()), {}


def models() -> dict[str, Factory]:
    """Every entry by name; a factory returns a fresh model in train mode with example arguments, the same each time.

    The MONAI networks that are built on einops are left out where that package is not installed.
    """
    einops = importlib.util.find_spec("einops") is not None

    def factory(build: Callable[[str], Example], name: str) -> Factory:
        def make() -> Example:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, args, kwargs = build(name)
                return model.train(), args, kwargs

        return make

    families: dict[str, tuple[Callable[[str], Example], Iterable[str]]] = {
        "dnc": (build_dnc, DNC),
        "monai": (build_monai, [name for name in MONAI if einops or name not in NEEDS_EINOPS]),
        "torch": (build_torch, TORCH),
        "transformers": (build_transformers, TRANSFORMERS),
    }
    return {f"{family}/{name}": factory(build, name) for family, (build, table) in families.items() for name in table}
