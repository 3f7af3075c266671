// The kernels of one instruction set; compiled once for each.
#include "kernels/attention.h"
#include "kernels/integer_linear.h"
#include "kernels/linear.h"
#include "kernels/mctf.h"
#include "kernels/mctf_attention.h"
#include "kernels/norm.h"
#include "kernels/patches.h"
#include "kernels/tokens.h"
#include "kernels/tome.h"

namespace tokexport::TOKEXPORT_ISA {

#define TOKEXPORT_TEXT(name) #name
#define TOKEXPORT_NAME(name) TOKEXPORT_TEXT(name)

extern const Kernels kernels;
const Kernels kernels = {
    TOKEXPORT_NAME(TOKEXPORT_ISA),
    integer_kernels,
    linear_task,
    patches_task,
    attention_keys_task,
    attention_values_task,
    attention_task,
    attention_weights_task,
    received_task,
    criteria_task,
    ahead_values_task,
    ahead_task,
    norm_task,
    match_task,
    cosine_units_task,
    cosine_rows_task,
    cosine_rank_task,
    merge_by_size_task,
    scored_units_task,
    scored_rows_task,
    match_back_task,
    group_task,
    gather_task,
    scatter_task,
};

}  // namespace tokexport::TOKEXPORT_ISA
