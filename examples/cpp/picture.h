// Decodes PNG files to the pixels that tokexport's own decoder gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

// Returns pixels (height, width, 3): red, green, blue. Transparency is dropped, and the colours beneath it stay.
// Throws Problem: the file is missing, no PNG or damaged, has another size, 16 bits a channel, or metadata that
// may turn it.
std::vector<std::uint8_t> decode_png(const std::filesystem::path& path, std::size_t height, std::size_t width);
