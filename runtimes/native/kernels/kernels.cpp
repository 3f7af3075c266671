// The kernels of one instruction set; compiled once for each.
#include "kernels/attention.h"
#include "kernels/int8_linear.h"
#include "kernels/layer_norm.h"
#include "kernels/linear.h"
#include "kernels/mctf.h"
#include "kernels/mctf_attention.h"
#include "kernels/patches.h"
#include "kernels/tokens.h"
#include "kernels/tome.h"

namespace tokexport::TOKEXPORT_ISA {

#define TOKEXPORT_TEXT(name) #name
#define TOKEXPORT_NAME(name) TOKEXPORT_TEXT(name)

extern const Kernels kernels;
const Kernels kernels = {
    .name = TOKEXPORT_NAME(TOKEXPORT_ISA),
    .int8 = int8_kernels,
    .linear_task = linear_task,
    .patches_task = patches_task,
    .attention_keys_task = attention_keys_task,
    .attention_values_task = attention_values_task,
    .attention_task = attention_task,
    .attention_weights_task = attention_weights_task,
    .attention_received_task = attention_received_task,
    .fusion_criteria_task = fusion_criteria_task,
    .merged_values_task = merged_values_task,
    .merged_attention_task = merged_attention_task,
    .layer_norm_task = layer_norm_task,
    .match_task = match_task,
    .cosine_normalize_task = cosine_normalize_task,
    .cosine_argmax_task = cosine_argmax_task,
    .cosine_select_task = cosine_select_task,
    .merge_by_size_task = merge_by_size_task,
    .scored_normalize_task = scored_normalize_task,
    .scores_task = scores_task,
    .match_back_task = match_back_task,
    .merge_groups_task = merge_groups_task,
    .gather_task = gather_task,
    .scatter_task = scatter_task,
};

}  // namespace tokexport::TOKEXPORT_ISA
