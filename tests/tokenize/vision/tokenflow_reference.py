"""TokenFlow's published definition, teacher siglip_384, in plain operations on a state dict: the layout of its checkpoints,
random weights in that layout, and encode and decode written out (float64, attention as softmax, norms by hand)."""

import math

import torch
from torch.nn import functional as F

SMALL = {
    "channels": 32, "mult": (1, 1, 2, 2, 4), "blocks": 1, "z": 24, "decoder_channels": 64, "decoder_blocks": 2, "pixel": 6,
    "semantic": 10, "codes": 64, "hidden": 48, "inner": 80, "layers": 3, "patch": 4, "grid": 5, "depth": 2, "usage": 300,
}  # fmt: skip
PUBLISHED = {
    "channels": 128, "mult": (1, 1, 2, 2, 4), "blocks": 2, "z": 256, "decoder_channels": 128, "decoder_blocks": 2,
    "pixel": 8, "semantic": 32, "codes": 32768, "hidden": 1152, "inner": 4304, "layers": 27, "patch": 14, "grid": 27,
    "depth": 3, "usage": 131072,
}  # fmt: skip
SIDES, IMAGE, SIGLIP_HEADS, HEADS = (1, 2, 3, 5), 22, 2, 3


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv(name, inputs, outputs, side):
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name, inputs, outputs):
    shapes = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", inputs, outputs, 3)
    shapes |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3)
    return shapes | (conv(f"{name}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {})


def attention(name, width):
    shapes = norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.{part}", width, width, 1)
    return shapes


def cnn(name, widths, blocks, inputs, outputs, step):
    """The reference's Encoder or Decoder: `widths` from the first resolution it works at to the last."""
    start, lowest = (widths[0], len(widths) - 1) if step == "downsample" else (widths[0], 0)
    shapes = conv(f"{name}.conv_in", inputs, start, 3)
    width = start
    for level, target in enumerate(widths):
        for index in range(blocks):
            shapes |= block(f"{name}.conv_blocks.{level}.res.{index}", width, target)
            width = target
            if level == lowest:
                shapes |= attention(f"{name}.conv_blocks.{level}.attn.{index}", width)
        if level < len(widths) - 1:
            shapes |= conv(f"{name}.conv_blocks.{level}.{step}.conv", width, width, 3)
    middle = widths[lowest]
    shapes |= block(f"{name}.mid.0", middle, middle) | attention(f"{name}.mid.1", middle)
    shapes |= block(f"{name}.mid.2", middle, middle)
    return shapes | norm(f"{name}.norm_out", width) | conv(f"{name}.conv_out", width, outputs, 3)


def reference_shapes(s):
    """Every tensor of the official layout, teacher siglip_384, by the reference's rules."""
    hidden = s["hidden"]
    shapes = cnn("encoder", [s["channels"] * m for m in s["mult"]], s["blocks"], 3, s["z"], "downsample")
    wide = [s["decoder_channels"] * m for m in reversed(s["mult"])]
    shapes |= cnn("decoder", wide, s["decoder_blocks"] + 1, s["z"], 3, "upsample")
    shapes |= conv("quant_conv", s["z"], s["pixel"], 1) | conv("post_quant_conv", s["pixel"], s["z"], 1)
    shapes |= {
        "quantize.embedding_vqkd.weight": (s["codes"], s["semantic"]),
        "quantize.embedding_vqgan.weight": (s["codes"], s["pixel"]),
        "quantize.codebook_used": (s["usage"],),
        "scaling_layer.shift": (1, 3, 1, 1),
        "scaling_layer.scale": (1, 3, 1, 1),
    }
    tower = "encoder_vqkd.vision_model"
    shapes |= conv(f"{tower}.embeddings.patch_embedding", 3, hidden, s["patch"])
    shapes[f"{tower}.embeddings.position_embedding.weight"] = (s["grid"] ** 2, hidden)
    for layer in range(s["layers"]):
        name = f"{tower}.encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{part}", hidden, hidden)
        shapes |= norm(f"{name}.layer_norm1", hidden) | norm(f"{name}.layer_norm2", hidden)
        shapes |= linear(f"{name}.mlp.fc1", hidden, s["inner"]) | linear(f"{name}.mlp.fc2", s["inner"], hidden)
    shapes |= norm(f"{tower}.post_layernorm", hidden)
    shapes |= {f"{tower}.head.probe": (1, 1, hidden), f"{tower}.head.attention.in_proj_weight": (3 * hidden, hidden)}
    shapes[f"{tower}.head.attention.in_proj_bias"] = (3 * hidden,)
    shapes |= linear(f"{tower}.head.attention.out_proj", hidden, hidden) | norm(f"{tower}.head.layernorm", hidden)
    shapes |= linear(f"{tower}.head.mlp.fc1", hidden, s["inner"]) | linear(f"{tower}.head.mlp.fc2", s["inner"], hidden)
    shapes |= linear("encode_task_layer.0", hidden, hidden) | linear("encode_task_layer.2", hidden, s["semantic"])
    shapes |= {"decoder_vqkd.cls_token": (1, 1, hidden), "decoder_vqkd.pos_embed": (1, s["grid"] ** 2 + 1, hidden)}
    shapes |= conv("decoder_vqkd.patch_embed.proj", s["semantic"], hidden, 1)
    for layer in range(s["depth"]):
        name = f"decoder_vqkd.blocks.{layer}"
        shapes |= norm(f"{name}.norm1", hidden) | norm(f"{name}.norm2", hidden)
        shapes |= {f"{name}.attn.q_bias": (hidden,), f"{name}.attn.v_bias": (hidden,)}
        shapes[f"{name}.attn.qkv.weight"] = (3 * hidden, hidden)
        shapes |= linear(f"{name}.attn.proj", hidden, hidden)
        shapes |= linear(f"{name}.mlp.fc1", hidden, 4 * hidden) | linear(f"{name}.mlp.fc2", 4 * hidden, hidden)
    shapes |= norm("decoder_vqkd.fc_norm", hidden)
    return shapes | linear("decode_task_layer.0", hidden, hidden) | linear("decode_task_layer.2", hidden, hidden)


def random_weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in reference_shapes(SMALL).items():
        draw = torch.randn(shape, generator=generator)
        if "scaling_layer" in name:
            weights[name] = torch.full(shape, 0.5)
        elif len(shape) == 1:
            weights[name] = 0.1 * draw + (1 if "norm" in name and name.endswith("weight") else 0)
        elif "embedding" in name or name.endswith(("cls_token", "pos_embed", "probe")):
            weights[name] = draw
        else:
            weights[name] = draw / math.sqrt(math.prod(shape[1:]))
    return weights


class Reference:
    """TokenFlow's encode and decode for teacher siglip_384, on a state dict, in float64."""

    def __init__(self, weights):
        self.w = {name: tensor.double() for name, tensor in weights.items()}

    def conv(self, name, x, **how):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **how)

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"].t() + self.w[f"{name}.bias"]

    def group_norm(self, name, x):
        b, c, h, w = x.shape
        groups = x.view(b, 32, c // 32 * h * w)
        groups = groups - groups.mean(2, keepdim=True)
        out = (groups / (groups.square().mean(2, keepdim=True) + 1e-6).sqrt()).view(b, c, h, w)
        return out * self.w[f"{name}.weight"].view(1, -1, 1, 1) + self.w[f"{name}.bias"].view(1, -1, 1, 1)

    def layer_norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        out = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return out * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def swish(self, x):
        return x * torch.sigmoid(x)

    def res(self, name, x):
        h = self.conv(f"{name}.conv1", self.swish(self.group_norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(self.group_norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.w else x)

    def attend(self, name, x):
        normed = self.group_norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        share = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", share, v).view_as(x))

    def stages(self, name, x, blocks, lowest):
        for level in range(len(SMALL["mult"])):
            for index in range(blocks):
                x = self.res(f"{name}.conv_blocks.{level}.res.{index}", x)
                if level == lowest:
                    x = self.attend(f"{name}.conv_blocks.{level}.attn.{index}", x)
            if level < len(SMALL["mult"]) - 1 and name == "encoder":
                bordered = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
                bordered[:, :, :-1, :-1] = x
                x = self.conv(f"{name}.conv_blocks.{level}.downsample.conv", bordered, stride=2)
            elif level < len(SMALL["mult"]) - 1:
                doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"{name}.conv_blocks.{level}.upsample.conv", doubled, padding=1)
        return x

    def middle(self, name, x):
        return self.res(f"{name}.mid.2", self.attend(f"{name}.mid.1", self.res(f"{name}.mid.0", x)))

    def last(self, name, x):
        return self.conv(f"{name}.conv_out", self.swish(self.group_norm(f"{name}.norm_out", x)), padding=1)

    def heads(self, q, k, v, count):
        b, n, c = q.shape
        q, k, v = (part.view(b, n, count, c // count).transpose(1, 2) for part in (q, k, v))
        share = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(c // count), dim=-1)
        return (share @ v).transpose(1, 2).reshape(b, n, c)

    def siglip(self, pixels):
        shown = ((pixels + 1) * 127.5).clamp(0, 255) / 255
        shown = (shown - self.w["scaling_layer.shift"]) / self.w["scaling_layer.scale"]
        tower = "encoder_vqkd.vision_model"
        x = self.conv(f"{tower}.embeddings.patch_embedding", shown, stride=SMALL["patch"]).flatten(2).transpose(1, 2)
        x = x + self.w[f"{tower}.embeddings.position_embedding.weight"]
        states = [x]
        for layer in range(SMALL["layers"]):
            name = f"{tower}.encoder.layers.{layer}"
            normed = self.layer_norm(f"{name}.layer_norm1", x)
            q, k, v = (self.linear(f"{name}.self_attn.{part}_proj", normed) for part in "qkv")
            x = x + self.linear(f"{name}.self_attn.out_proj", self.heads(q, k, v, SIGLIP_HEADS))
            inner = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.layer_norm2", x))
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + self.linear(f"{name}.mlp.fc2", inner)
            states.append(x)
        return states[-2]

    def task(self, name, x):
        return self.linear(f"{name}.2", torch.tanh(self.linear(f"{name}.0", x)))

    def codebook(self):
        parts = [self.w[f"quantize.embedding_{name}.weight"] for name in ("vqkd", "vqgan")]
        return [part / part.norm(dim=1, keepdim=True) for part in parts]

    def features(self, pixels):
        grid = SMALL["grid"]
        semantic = self.task("encode_task_layer", self.siglip(pixels)).transpose(1, 2).unflatten(2, (grid, grid))
        large = F.interpolate(pixels, size=(16 * grid, 16 * grid), mode="bicubic")
        x = self.conv("encoder.conv_in", large, padding=1)
        x = self.stages("encoder", x, SMALL["blocks"], len(SMALL["mult"]) - 1)
        return torch.cat([semantic, self.conv("quant_conv", self.last("encoder", self.middle("encoder", x)))], dim=1)

    def encode(self, pixels):
        residual = self.features(pixels)
        semantic, pixel = self.codebook()
        total, found = torch.zeros_like(residual), []
        for side in SIDES:
            small = F.interpolate(residual, size=(side, side), mode="area").permute(0, 2, 3, 1).flatten(0, 2)
            rows = small.split([semantic.shape[1], pixel.shape[1]], dim=1)
            distance = sum(
                (row / row.norm(dim=1, keepdim=True)).unsqueeze(1).sub(book).square().sum(2)
                for row, book in zip(rows, (semantic, pixel), strict=True)
            )
            codes = distance.argmin(1)
            chosen = torch.cat([semantic, pixel], dim=1)[codes].view(len(pixels), side, side, -1).permute(0, 3, 1, 2)
            large = F.interpolate(chosen, size=(SMALL["grid"],) * 2, mode="bicubic")
            total, residual = total + large, residual - large
            found.append(codes.view(len(pixels), -1))
        return torch.cat(found, dim=1), total

    def decode(self, total):
        semantic, pixel = total.split([SMALL["semantic"], SMALL["pixel"]], dim=1)
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", pixel), padding=1))
        x = self.last("decoder", self.stages("decoder", x, SMALL["decoder_blocks"] + 1, 0))
        image = F.interpolate(x, size=(IMAGE, IMAGE), mode="bicubic")
        y = self.conv("decoder_vqkd.patch_embed.proj", semantic).flatten(2).transpose(1, 2)
        y = torch.cat([self.w["decoder_vqkd.cls_token"].expand(len(y), -1, -1), y], dim=1) + self.w["decoder_vqkd.pos_embed"]
        for layer in range(SMALL["depth"]):
            name = f"decoder_vqkd.blocks.{layer}"
            q, k, v = (self.layer_norm(f"{name}.norm1", y) @ self.w[f"{name}.attn.qkv.weight"].t()).chunk(3, dim=2)
            mixed = self.heads(q + self.w[f"{name}.attn.q_bias"], k, v + self.w[f"{name}.attn.v_bias"], HEADS)
            y = y + self.linear(f"{name}.attn.proj", mixed)
            inner = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", y))
            y = y + self.linear(f"{name}.mlp.fc2", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
        y = self.task("decode_task_layer", self.layer_norm("decoder_vqkd.fc_norm", y[:, 1:]))
        return image, y.transpose(1, 2).unflatten(2, (SMALL["grid"],) * 2)
