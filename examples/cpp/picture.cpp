#include "picture.h"

#include <png.h>

#include <cstdio>
#include <memory>
#include <string>

#include "bundle.h"

namespace fs = std::filesystem;

namespace {

void on_error(png_structp png, png_const_charp message) {
  static_cast<std::string*>(png_get_error_ptr(png))->assign(message);
  png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

struct Reader {
  explicit Reader(std::string* said)
      : png(png_create_read_struct(PNG_LIBPNG_VER_STRING, said, on_error, on_warning)),
        info(png ? png_create_info_struct(png) : nullptr) {
    if (!info) throw std::bad_alloc();
  }
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  png_structp png;
  png_infop info;
};

// Whether metadata may ask for the picture to be turned, which is not done here.
bool may_be_turned(Reader& reader) {
  png_uint_32 bytes = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(reader.png, reader.info, &bytes, &exif)) return true;
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(reader.png, reader.info, &texts, &count);
  for (int place = 0; place < count; ++place) {
    const std::string key = texts[place].key;
    if (key.rfind("Raw profile type ", 0) == 0 || key == "XML:com.adobe.xmp") return true;
  }
  return false;
}

}  // namespace

std::vector<std::uint8_t> decode_png(const fs::path& path, std::size_t height, std::size_t width) {
  const std::string name = path.string();
  std::error_code failed;
  if (!fs::is_regular_file(path, failed)) throw Problem("The picture " + name + " is no file.");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(name.c_str(), "rb"), std::fclose);
  if (!file) throw Problem("The picture " + name + " cannot be read.");
  png_byte signature[8];
  if (std::fread(signature, 1, 8, file.get()) != 8 || png_sig_cmp(signature, 0, 8) != 0) {
    throw Problem(name + " is no PNG file.");
  }
  std::string said;
  Reader reader(&said);
  std::vector<std::uint8_t> pixels(height * width * 3);
  std::vector<png_bytep> rows(height);
  for (std::size_t row = 0; row < height; ++row) rows[row] = &pixels[row * width * 3];

  // libpng jumps back here from its own functions alone, past no object of this one.
  if (setjmp(png_jmpbuf(reader.png))) throw Problem(name + " is damaged or cut off: " + said + ".");
  png_init_io(reader.png, file.get());
  png_set_sig_bytes(reader.png, 8);
  png_read_info(reader.png, reader.info);
  const std::size_t tall = png_get_image_height(reader.png, reader.info);
  const std::size_t wide = png_get_image_width(reader.png, reader.info);
  if (tall != height || wide != width) {
    throw Problem(name + " has " + std::to_string(tall) + " x " + std::to_string(wide) +
                  " pixels (height x width), and the artifact takes " + std::to_string(height) + " x " +
                  std::to_string(width) + ".");
  }
  if (png_get_bit_depth(reader.png, reader.info) == 16) {
    throw Problem(name + " has 16 bits a channel: save it with 8.");
  }
  png_set_expand(reader.png);
  png_set_strip_alpha(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  if (png_get_rowbytes(reader.png, reader.info) != width * 3) png_error(reader.png, "its rows have another length");
  png_read_image(reader.png, rows.data());
  png_read_end(reader.png, reader.info);
  if (may_be_turned(reader)) throw Problem(name + " has metadata that may turn it: save it without.");
  return pixels;
}
