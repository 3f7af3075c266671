// Scratch memory of a thread, kept from task to task.
#pragma once

#include <cstdlib>
#include <new>

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

template <typename Element>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Room for `count` elements; what was there before is lost.
  Element* of(size_t count) {
    if (count > room_) {
      std::free(data_);
      room_ = 0;
      data_ = static_cast<Element*>(std::malloc(count * sizeof(Element)));
      if (data_ == nullptr) throw std::bad_alloc();
      room_ = count;
    }
    return data_;
  }

 private:
  Element* data_ = nullptr;
  size_t room_ = 0;
};

}  // namespace tokexport::TOKEXPORT_ISA
