"""DenseFlow written down step by step: what models/denseflow.py is compared with, for its values and for its speed.

Functions of a state_dict, whose keys alone say how many blocks, steps and layers there are. Actnorm, 1x1 convolution
and coupling come one after the other, each with its own log-determinant, inverse and, here, loop. Noise is drawn in
the order in which it is needed: with the same seed, model and transcription see the same.
"""

import math

import torch
import torch.nn.functional as F

FIRST_BLOCK = 3  # transforms 0, 1, 2 are dequantization, shift and squeeze; 4, 6, ... are transitions


def log_prob(weights, images):
    """(B,) nats, with gradients to the weights that ask for them"""
    features = images.to(weights["base_dist.loc"].dtype)
    values = features[0].numel()
    features = (features + torch.rand(features.shape, dtype=features.dtype, device=features.device)) / 256 - 0.5
    total = torch.zeros(len(images), dtype=features.dtype, device=features.device) - values * math.log(256)
    features = squeeze(features)
    for number, block in enumerate(blocks(weights)):
        if number:
            features, dropped = halves(squeeze(features))
            total = total + log_normal(dropped)
        features, gained = dense_block(weights, block, features)
        total = total + gained
    mean, log_scale = weights["base_dist.loc"], weights["base_dist.log_scale"]
    pixels = features.shape[2] * features.shape[3]
    return total + log_normal((features - mean) / log_scale.exp()) - pixels * log_scale.sum()


def sample(weights, n, height, width):
    """(n, 3, height, width) in 0..255"""
    names = blocks(weights)
    stride = 2 ** len(names)
    mean, log_scale = weights["base_dist.loc"], weights["base_dist.log_scale"]
    noise = torch.randn(n, mean.shape[1], height // stride, width // stride, dtype=mean.dtype, device=mean.device)
    features = mean + log_scale.exp() * noise
    for number, block in reversed(list(enumerate(names))):
        features = inverse_dense_block(weights, block, features)
        if number:
            dropped = torch.randn(features.shape, dtype=features.dtype, device=features.device)
            features = unsqueeze(torch.cat([features, dropped], 1))
    return (256 * (unsqueeze(features) + 0.5)).clamp(0, 255)


def blocks(weights):
    """Key prefixes of the dense blocks"""
    return listed(weights, "transforms.{}.blocks.", range(FIRST_BLOCK, 99, 2))


def steps(weights, block):
    return listed(weights, block + "{}.", range(99))


def layers(weights, step):
    return listed(weights, step + "transforms.{}.transforms.", range(99))


def listed(weights, pattern, numbers):
    found = []
    for number in numbers:
        prefix = pattern.format(number)
        if not any(key.startswith(prefix) for key in weights):
            return found
        found.append(prefix)


def dense_block(weights, block, features):
    total, inputs = 0.0, []
    for number, step in enumerate(steps(weights, block)):
        before = features  # as it was before its own noise channels were appended
        if number:
            key = block.replace("blocks.", f"noise_params.{number - 1}.transformation.")
            hidden = F.relu(convolve(weights, key + "0.", torch.cat(inputs, 1)))
            mean, raw = halves(convolve(weights, key + "2.", hidden))
            log_scale = 2 * torch.tanh(raw / 2)
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
            features = torch.cat([features, mean + log_scale.exp() * noise], 1)
            total = total + log_scale.sum((1, 2, 3)) - log_normal(noise)
        inputs.append(before)
        for layer in layers(weights, step):
            features, gained = forward_layer(weights, layer, features)
            total = total + gained
    return features, total


def inverse_dense_block(weights, block, features):
    for number, step in reversed(list(enumerate(steps(weights, block)))):
        for layer in reversed(layers(weights, step)):
            features = inverse_layer(weights, layer, features)
        if number:
            appended = len(weights[block.replace("blocks.", "noise_params.0.transformation.2.bias")]) // 2
            features = features[:, : features.shape[1] - appended]
    return features


def forward_layer(weights, layer, features):
    pixels = features.shape[2] * features.shape[3]
    shift, log_scale = weights[layer + "0.shift"], weights[layer + "0.log_scale"]
    features = (features - shift) * torch.exp(-log_scale)
    gained = -pixels * log_scale.sum()

    matrix = weights[layer + "1.weight"]
    features = F.conv2d(features, matrix[:, :, None, None])
    gained = gained + pixels * torch.linalg.slogdet(matrix)[1]

    first, second = halves(features)
    log_scale, shift = coupling(weights, layer, first)
    second = shift + torch.exp(log_scale) * second
    return torch.cat([second, first], 1), gained + log_scale.sum((1, 2, 3))


def inverse_layer(weights, layer, features):
    second, first = halves(features)
    log_scale, shift = coupling(weights, layer, first)
    features = torch.cat([first, (second - shift) / torch.exp(log_scale)], 1)
    features = F.conv2d(features, torch.linalg.inv(weights[layer + "1.weight"])[:, :, None, None])
    return features * torch.exp(weights[layer + "0.log_scale"]) + weights[layer + "0.shift"]


def coupling(weights, layer, first):
    """Log-scale and shift for the other half of the channels"""
    network = layer + "2.coupling_net.0.dn.transform."
    start = convolve(weights, network + "0.", first)
    grown, stack = start, listed(weights, network + "1.dense.{}.", range(99))
    for part in stack[:-1]:
        new = F.relu(convolve(weights, part + "nn.0.", grown))
        new = F.relu(convolve(weights, part + "nn.2.", new))
        grown = torch.cat([grown, new], 1)
    a, b, c = convolve(weights, stack[-1] + "conv.", grown).chunk(3, 1)
    output = convolve(weights, network + "2.", start + a + b * torch.sigmoid(c))
    return 2 * torch.tanh(output[:, 0::2] / 2), output[:, 1::2]


def convolve(weights, key, features):
    kernel = weights[key + "weight"]
    return F.conv2d(features, kernel, weights[key + "bias"], padding=kernel.shape[2] // 2)


def squeeze(features):
    batch, channels, height, width = features.shape
    features = features.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return features.reshape(batch, 4 * channels, height // 2, width // 2)


def unsqueeze(features):
    batch, channels, height, width = features.shape
    features = features.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return features.reshape(batch, channels // 4, 2 * height, 2 * width)


def halves(features):
    half = features.shape[1] // 2
    return features[:, :half], features[:, half:]


def log_normal(values):
    """ln N(values; 0, 1) of each image"""
    return (-0.5 * values**2 - 0.5 * math.log(2 * math.pi)).sum(tuple(range(1, values.dim())))
