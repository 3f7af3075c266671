// What ONNX Runtime calls when it loads the library.
#include "operators/operators.h"
#include "ort/custom_op.h"

namespace {

using namespace tokexport;

const std::vector<OrtOperator>& operators() {
  static const std::vector<OrtOperator> all = [] {
    std::vector<Operator> found;
    add_dense_operators(&found);
    add_integer_operators(&found);
    add_token_operators(&found);
    add_tome_operators(&found);
    add_both_ways_operators(&found);
    add_ahead_operators(&found);
    return std::vector<OrtOperator>(found.begin(), found.end());
  }();
  return all;
}

OrtStatus* add_operators(OrtSessionOptions* options, const abi::Api* api) {
  OrtCustomOpDomain* domain = nullptr;
  if (OrtStatus* status = abi::CreateCustomOpDomain::of(api)("tokexport", &domain)) return status;
  for (const OrtOperator& one : operators())
    if (OrtStatus* status = abi::CustomOpDomainAdd::of(api)(domain, &one)) return status;
  return abi::AddCustomOpDomain::of(api)(options, domain);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const tokexport::abi::ApiBase* base) {
  // A runtime too old for this interface has no table for it, and nothing to say so with either:
  // it runs the bodies of the functions.
  const abi::Api* api = base->GetApi(abi::kVersion);
  return api == nullptr ? nullptr : add_operators(options, api);
}
