"""DenseFlow (NeurIPS 2021): a normalizing flow of images, from which synthetic negatives are drawn (TPAMI 2024).

Every layer gives its output and what it adds to the log-likelihood. Dequantization and cross-unit coupling, which
appends noise channels between the steps of a block, give an image many latents: log_prob is a lower bound in
expectation over the noise drawn. Attribute names are those of the released
checkpoints. All noise comes from torch.rand and torch.randn.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from errors import NotFinite, WrongInput

LEVELS = 256  # of a stored pixel value
LOG_2_PI = math.log(2 * math.pi)


def denseflow_25_6(checkpointing: bool = False) -> "DenseFlow":
    """DenseFlow-25-6, 35.7 million parameters, with random weights.

    checkpointing  run the coupling networks again in the backward pass instead of keeping what they computed
    """
    return DenseFlow(steps=(3, 2, 1), layers=(3, 4, 8), growth=6, width=32, checkpointing=checkpointing)


class DenseFlow(nn.Module):
    """A density over RGB images and a sampler of them, fully convolutional: any size whose sides divide by 8.

    steps, layers  of each dense block: its steps, and the invertible layers of each step
    growth         noise channels that cross-unit coupling appends before each step of a block but its first
    width          channels inside the coupling networks
    """

    def __init__(
        self,
        steps: tuple[int, ...],
        layers: tuple[int, ...],
        growth: int,
        width: int,
        dense_layers: int = 7,
        checkpointing: bool = False,
    ):
        super().__init__()
        transforms: list[nn.Module] = [Dequantization(), Shift(), Squeeze()]
        channels = 4 * 3
        for number, (block_steps, block_layers) in enumerate(zip(steps, layers, strict=True)):
            if number:
                transforms.append(Transition())
                channels *= 2
            block = DenseBlock(channels, block_steps, block_layers, growth, width, dense_layers, checkpointing)
            channels = block.out_channels
            transforms.append(block)
        self.base_dist = ChannelGaussian(channels)
        self.transforms = nn.ModuleList(transforms)
        self.channels, self.stride = channels, 2 ** len(steps)
        self.known_initialized = False  # what is_initialized found out: reading it again would wait for a GPU

    def forward(self, images: Tensor) -> Tensor:
        return self.log_prob(images)

    def log_prob(self, images: Tensor) -> Tensor:
        """ln p(images) in nats, (B,), of images (B, 3, H, W) of whole numbers 0..255, whatever their dtype.

        Computed in the parameters' precision under autocast too. In train mode the first call sets the ActNorm
        layers from these images. Raises ValueError where a side does not divide by 8.
        """
        with without_autocast(images):
            if self.training and not self.is_initialized():
                self.initialize(images)
            latent, log_likelihood, _ = self.encode(images)
            return log_likelihood + self.base_dist.log_prob(latent)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images -> latent (B, C, H/8, W/8), the log-likelihood (B,) but for the latent's, the dropped halves."""
        self.check_size(*images.shape[2:])
        features = images.to(self.base_dist.loc.dtype)
        log_likelihood, dropped = features.new_zeros(len(images)), []
        for transform in self.transforms:
            if isinstance(transform, Transition):
                features, half, gained = transform(features)
                dropped.append(half)
            else:
                features, gained = transform(features)
            log_likelihood = log_likelihood + gained
        return features, log_likelihood, dropped

    def is_initialized(self) -> bool:
        """Whether every ActNorm layer was set; once they were, a GPU is not waited for."""
        if not self.known_initialized:
            self.known_initialized = bool(torch.stack([layer.norm.initialized for layer in self.layers()]).all())
        return self.known_initialized

    def _load_from_state_dict(self, *args) -> None:
        self.known_initialized = False  # what is loaded may never have been set
        super()._load_from_state_dict(*args)

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the ActNorm layers that were never set from what reaches them when images go through the flow."""

        if len(images) * images.shape[2] * images.shape[3] < 2 * self.stride**2:
            raise WrongInput("a flow cannot be set from one value per channel: take larger patches or a larger batch")

        def set_norm(layer: Layer, inputs: tuple[Tensor]) -> None:
            if not layer.norm.initialized:
                layer.norm.initialize(*inputs)

        hooks = [layer.register_forward_pre_hook(set_norm) for layer in self.layers()]
        try:
            self.encode(images)
        finally:
            for hook in hooks:
                hook.remove()

    def layers(self) -> list["Layer"]:
        return [module for module in self.modules() if isinstance(module, Layer)]

    def sample(self, n: int, height: int, width: int, check: bool = True) -> Tensor:
        """n images (n, 3, height, width) in 0..255, not rounded, with gradients to all that made them.

        Gradients stop at values that were clamped. Raises ValueError where a side does not divide by 8. Samples that
        are not finite raise FloatingPointError, for which a GPU is waited for; with check=False they come back as
        images of NaN alone, and no GPU is waited for.
        """
        self.check_size(height, width)
        with without_autocast(self.base_dist.loc):
            latent = self.base_dist.sample(n, height // self.stride, width // self.stride)
            return self.decode(latent, check=check)

    def decode(self, latent: Tensor, dropped: list[Tensor] | None = None, check: bool = True) -> Tensor:
        """The image of a latent; the halves that transitions dropped are given or else drawn anew."""
        features, left = latent, list(dropped or ())
        for transform in reversed(self.transforms):
            if isinstance(transform, Transition):
                features = transform.inverse(features, left.pop() if dropped else None)
            else:
                features = transform.inverse(features)
        finite = features.isfinite()
        if check and not finite.all():
            raise NotFinite(
                f"{(~finite).sum()} of {features.numel()} values drawn from the flow are not finite: it "
                "has diverged; train it with a lower learning rate, or go back to an earlier file"
            )
        images = features.clamp(0, LEVELS - 1)
        if check:
            return images
        # clamp makes a number of an infinity, and a loss is to show that the flow has diverged.
        return images.masked_fill(~finite.flatten(1).all(1)[:, None, None, None], math.nan)

    def check_size(self, height: int, width: int) -> None:
        if height <= 0 or width <= 0 or height % self.stride or width % self.stride:
            raise WrongInput(f"a flow's images of {width}x{height} pixels: sides must be multiples of {self.stride}")


class Dequantization(nn.Module):
    """Whole numbers 0..255 -> [0, 1), spread evenly over each number's width."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ldj_per_dim", torch.tensor(-math.log(LEVELS)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand(images.shape, dtype=images.dtype, device=images.device)
        return (images + noise) / LEVELS, self.ldj_per_dim * images[0].numel()

    def inverse(self, features: Tensor) -> Tensor:
        return LEVELS * features


class Shift(nn.Module):
    """[0, 1) -> [-1/2, 1/2)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("_shift", torch.tensor(-0.5))
        self.register_buffer("_scale", torch.tensor(1.0))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features * self._scale + self._shift, self._scale.abs().log() * features[0].numel()

    def inverse(self, features: Tensor) -> Tensor:
        return (features - self._shift) / self._scale


class Squeeze(nn.Module):
    """(B, C, H, W) -> (B, 4C, H/2, W/2)."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(features, 2), features.new_zeros(())

    def inverse(self, features: Tensor) -> Tensor:
        return F.pixel_shuffle(features, 2)


class Transition(nn.Module):
    """Squeeze, then keep the first half of the channels; the second is scored under a standard normal and dropped."""

    def __init__(self):
        super().__init__()
        self.dist = nn.Module()
        self.dist.register_buffer("buffer", torch.zeros(1))  # in the released files, and without use

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, dropped = F.pixel_unshuffle(features, 2).chunk(2, dim=1)
        return kept, dropped, standard_normal_log_prob(dropped)

    def inverse(self, features: Tensor, dropped: Tensor | None) -> Tensor:
        if dropped is None:
            dropped = torch.randn(features.shape, dtype=features.dtype, device=features.device)
        return F.pixel_shuffle(torch.cat([features, dropped], dim=1), 2)


class DenseBlock(nn.Module):
    """Steps of invertible layers, with noise channels appended before each but the first (cross-unit coupling)."""

    def __init__(
        self, channels: int, steps: int, layers: int, growth: int, width: int, dense_layers: int, checkpointing: bool
    ):
        super().__init__()
        self.growth = growth
        before, widths = [], [channels]  # channels of each step's input, without and with its own noise
        self.noise_params = nn.ModuleList()
        for _ in range(steps - 1):
            before.append(widths[len(before) - 1] if before else channels)
            self.noise_params.append(NoiseParameters(sum(before), growth))
            widths.append(widths[-1] + growth)
        self.blocks = nn.ModuleList(FlowStep(size, layers, width, dense_layers, checkpointing) for size in widths)
        self.out_channels = widths[-1]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = [features]
        features, log_likelihood = self.blocks[0](features)
        for parameters, step in zip(self.noise_params, self.blocks[1:], strict=True):
            mean, log_scale = parameters(torch.cat(seen, dim=1))
            seen.append(features)
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)
            gained = log_scale.sum((1, 2, 3)) - standard_normal_log_prob(noise)
            features, gained_in_step = step(torch.cat([features, mean + log_scale.exp() * noise], dim=1))
            log_likelihood = log_likelihood + gained + gained_in_step
        return features, log_likelihood

    def inverse(self, features: Tensor) -> Tensor:
        for step in reversed(self.blocks[1:]):
            features = step.inverse(features)[:, : -self.growth]
        return self.blocks[0].inverse(features)


class NoiseParameters(nn.Module):
    """(B, D, h, w) of what came before -> mean and log-scale (B, growth, h, w) of the noise that is appended."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.transformation = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.ReLU(), nn.Conv2d(4 * channels, 2 * growth, 1)
        )

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        if fused(seen):
            seen = laid_out_like(self.transformation[0].weight, seen)
        mean, scale = self.transformation(seen).chunk(2, dim=1)
        return mean, bounded_log_scale(scale)


class FlowStep(nn.Module):
    """Invertible layers of one width; the determinants or inverses of all their matrices come from one call."""

    def __init__(self, channels: int, layers: int, width: int, dense_layers: int, checkpointing: bool):
        super().__init__()
        self.transforms = nn.ModuleList(Layer(channels, width, dense_layers, checkpointing) for _ in range(layers))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        log_likelihood = features.new_zeros(len(features))
        for layer in self.transforms:
            features, gained = layer(features)
            log_likelihood = log_likelihood + gained
        # After the layers, which may have been set from the data on their way.
        per_pixel = torch.linalg.slogdet(self.matrices()).logabsdet.sum()
        per_pixel = per_pixel - torch.stack([layer.norm.log_scale for layer in self.transforms]).sum()
        return features, log_likelihood + per_pixel * features[0, 0].numel()

    def inverse(self, features: Tensor) -> Tensor:
        inverses, singular = torch.linalg.inv_ex(self.matrices())
        inverses = inverses.masked_fill((singular != 0)[:, None, None], math.nan)  # which decode tells of
        for layer, inverse in zip(reversed(self.transforms), inverses.flip(0), strict=True):
            features = layer.inverse(features, inverse)
        return features

    def matrices(self) -> Tensor:
        return torch.stack([layer.mix.weight for layer in self.transforms])


class Layer(nn.Module):
    """ActNorm and 1x1 convolution, run as one affine map of the channels, then the coupling of their halves."""

    def __init__(self, channels: int, width: int, dense_layers: int, checkpointing: bool):
        super().__init__()
        self.transforms = nn.ModuleList(
            [ActNorm(channels), ChannelMix(channels), Coupling(channels, width, dense_layers, checkpointing)]
        )

    @property
    def norm(self) -> "ActNorm":
        return self.transforms[0]

    @property
    def mix(self) -> "ChannelMix":
        return self.transforms[1]

    @property
    def coupling(self) -> "Coupling":
        return self.transforms[2]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output, and the coupling's share of the log-determinant (B,); FlowStep adds the matrices'."""
        shift, log_scale = self.norm.shift.flatten(), self.norm.log_scale.flatten()
        matrix = self.mix.weight * (-log_scale).exp()
        return self.coupling(affine(features, matrix, -(matrix @ shift)))

    def inverse(self, features: Tensor, inverse: Tensor) -> Tensor:
        """inverse  (C, C), that of the 1x1 convolution's matrix"""
        matrix = inverse * self.norm.log_scale.view(-1, 1).exp()
        features = self.coupling.inverse(features)
        return affine(features, matrix, self.norm.shift.flatten())


class ActNorm(nn.Module):
    """(features - shift) * exp(-log_scale), one of each per channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("initialized", torch.zeros(1))

    @torch.no_grad()
    def initialize(self, features: Tensor) -> None:
        """Make what these features (B, C, h, w) become zero in mean and one in standard deviation.

        Where several processes train, it is over the features of all of them.
        """
        mean, std = features.mean((0, 2, 3), keepdim=True), features.std((0, 2, 3), keepdim=True)
        if dist.is_initialized():
            values = torch.tensor(float(features[:, 0].numel()), device=features.device)
            total, squares = values * mean, (values - 1) * std.square() + values * mean.square()
            for tensor in (values, total, squares):
                dist.all_reduce(tensor)
            mean = total / values
            std = ((squares - values * mean.square()) / (values - 1)).clamp(min=0).sqrt()
        self.shift.copy_(mean)
        self.log_scale.copy_((std + 1e-6).log())
        self.initialized.fill_(1)


class ChannelMix(nn.Module):
    """The matrix of an invertible 1x1 convolution, a random rotation at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))


class Coupling(nn.Module):
    """The first half of the channels scales and shifts the second; then the halves change places."""

    def __init__(self, channels: int, width: int, dense_layers: int, checkpointing: bool):
        super().__init__()
        half = channels // 2
        last = nn.Conv2d(width, 2 * (channels - half), 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        network = nn.Sequential(nn.Conv2d(half, width, 1), ResidualDenseBlock(width, dense_layers), last)
        # The released keys nest it like this.
        self.coupling_net = nn.Sequential(nn.ModuleDict({"dn": nn.ModuleDict({"transform": network})}))
        self.half, self.checkpointing = half, checkpointing

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if fused(features):
            return FusedCoupling.apply(features, False, self.checkpointing, *self.weights())
        first, second = features[:, : self.half], features[:, self.half :]
        log_scale, shift = self.parameters_from(first)
        second = shift + log_scale.exp() * second
        return torch.cat([second, first], dim=1), log_scale.sum((1, 2, 3))

    def inverse(self, features: Tensor) -> Tensor:
        if fused(features):
            return FusedCoupling.apply(features, True, self.checkpointing, *self.weights())
        first, second = features[:, -self.half :], features[:, : -self.half]
        log_scale, shift = self.parameters_from(first)
        return torch.cat([first, (second - shift) * (-log_scale).exp()], dim=1)

    def parameters_from(self, first: Tensor) -> tuple[Tensor, Tensor]:
        network = self.coupling_net[0]["dn"]["transform"]
        if self.checkpointing and torch.is_grad_enabled():
            output = checkpoint(network, first, use_reentrant=False, preserve_rng_state=False)
        else:
            output = network(first)
        return bounded_log_scale(output[:, 0::2]), output[:, 1::2]

    def weights(self) -> list[Tensor]:
        """Kernel and bias of each convolution, in the order in which they are run."""
        convolutions = [module for module in self.coupling_net.modules() if isinstance(module, nn.Conv2d)]
        return [weight for module in convolutions for weight in (module.weight, module.bias)]


class ResidualDenseBlock(nn.Module):
    """x -> x + a + b * sigmoid(c), where a, b, c come from a densely connected stack over x."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        grown = [width + 2 * width * number for number in range(layers + 1)]
        self.dense = nn.ModuleList(
            nn.ModuleDict(
                {
                    "nn": nn.Sequential(
                        nn.Conv2d(channels, channels, 1),
                        nn.ReLU(inplace=True),
                        nn.Conv2d(channels, 2 * width, 3, padding=1),
                        nn.ReLU(inplace=True),
                    )
                }
            )
            for channels in grown[:-1]
        )
        self.dense.append(nn.ModuleDict({"conv": nn.Conv2d(grown[-1], 3 * width, 1)}))

    def forward(self, features: Tensor) -> Tensor:
        grown = features
        for layer in self.dense[:-1]:
            grown = torch.cat([grown, layer["nn"](grown)], dim=1)
        a, b, c = self.dense[-1]["conv"](grown).chunk(3, dim=1)
        return features + a + b * c.sigmoid()


class ChannelGaussian(nn.Module):
    """A Gaussian with one mean and one scale per channel, over latents (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def log_prob(self, latent: Tensor) -> Tensor:
        standard = (latent - self.loc) * (-self.log_scale).exp()
        return standard_normal_log_prob(standard) - self.log_scale.sum() * latent[0, 0].numel()

    def sample(self, n: int, height: int, width: int) -> Tensor:
        shape = (n, self.loc.shape[1], height, width)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.log_scale.exp() * noise


def standard_normal_log_prob(values: Tensor) -> Tensor:
    """(B, ...) -> (B,), summed over all but the first axis."""
    return -0.5 * (values.square() + LOG_2_PI).flatten(1).sum(1)


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Within -2..2, so that no layer scales by more than exp(2)."""
    return 2 * torch.tanh(raw / 2)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A flow keeps full precision: what bfloat16 rounds, no inverse brings back."""
    return torch.autocast(tensor.device.type, enabled=False)


# On a GPU. Its time goes by launching a flow's many small operations, so there are fewer here, and those of the dense
# stacks are written out together with their gradients. (B, C, h, w) lie channels_last: as rows (B h w, C) of a matrix.


def fused(features: Tensor) -> bool:
    """Whether the functions below run; torch.compile has its own ways to launch less."""
    return features.is_cuda and not torch.compiler.is_compiling()


def affine(features: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """matrix @ each pixel's channels + shift"""
    if fused(features):
        return as_image(torch.addmm(shift, as_rows(features), matrix.T), features)
    return F.conv2d(features, matrix[:, :, None, None], shift)


class FusedCoupling(torch.autograd.Function):
    """Coupling.forward or .inverse, and its gradients to features and weights (once differentiable).

    The features of the dense stack are columns of one matrix, to which each layer adds its own, and a 1x1 convolution
    is one matrix product, its bias and ReLU included. With checkpointing, backward starts from the input again. Below,
    to_x is the gradient to x.
    """

    @staticmethod
    def forward(ctx, features: Tensor, inverse: bool, checkpointing: bool, *weights: Tensor):
        output, gained, kept = couple(features, inverse, weights)
        ctx.inverse, ctx.checkpointing = inverse, checkpointing
        ctx.save_for_backward(features, *weights, *([] if checkpointing else (output, *kept)))
        return output if inverse else (output, gained)

    @staticmethod
    @once_differentiable
    def backward(ctx, to_output: Tensor, to_gained: Tensor | None = None):
        needed = ctx.needs_input_grad[3:]
        features, *saved = ctx.saved_tensors
        weights, kept = saved[: len(needed)], saved[len(needed) :]
        with without_autocast(features):
            if ctx.checkpointing:
                output, _, kept = couple(features, ctx.inverse, weights)
            else:
                output, *kept = kept
            tanh, scale, *kept = kept
            half, to_output = weights[0].shape[1], as_rows(to_output)
            first, second = halves(as_rows(features), half, ctx.inverse)
            scaled = halves(as_rows(output), half, not ctx.inverse)[1]
            to_kept, to_scaled = halves(to_output, half, not ctx.inverse)

            to_features, to_raw = torch.empty_like(to_output), scale.new_empty(len(scale), 2 * scale.shape[1])
            to_first, to_second = halves(to_features, half, ctx.inverse)
            to_log_scale, to_shift = to_raw[:, 0::2], to_raw[:, 1::2]
            torch.mul(to_scaled, scale, out=to_second)
            if ctx.inverse:  # scaled = (second - shift) * exp(-log_scale)
                torch.neg(to_second, out=to_shift)
                torch.mul(to_scaled, scaled, out=to_log_scale).neg_()
            else:  # scaled = shift + exp(log_scale) * second, of which log_scale was gained
                to_shift.copy_(to_scaled)
                torch.mul(to_second, second, out=to_log_scale)
                to_log_scale.view(len(features), -1, scale.shape[1]).add_(to_gained[:, None, None])
            torch.ops.aten.tanh_backward.grad_input(to_log_scale, tanh, grad_input=to_log_scale)

            to_first.copy_(to_kept)
            to_weights = network_backward(to_raw, to_first, first, features, kept, weights, needed)
        return as_image(to_features, features), None, None, *to_weights


def couple(features: Tensor, inverse: bool, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Coupling's output, the log-determinant gained (none for the inverse), and what the gradients are made from."""
    half, pixels = weights[0].shape[1], as_rows(features)
    first, second = halves(pixels, half, inverse)
    raw, kept = network(first, features, weights)
    tanh, shift = torch.tanh(raw[:, 0::2] / 2), raw[:, 1::2]
    exponent = (-2 if inverse else 2) * tanh
    gained = None if inverse else exponent.view(len(features), -1).sum(1)
    scale = exponent.exp_()
    output = pixels.new_empty(pixels.shape)
    same, scaled = halves(output, half, not inverse)
    same.copy_(first)
    if inverse:
        torch.sub(second, shift, out=scaled).mul_(scale)
    else:
        torch.addcmul(shift, scale, second, out=scaled)
    return as_image(output, features), gained, [tanh, scale, *kept]


def network(first: Tensor, features: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Coupling.coupling_net on rows: (B h w, half) -> (B h w, outputs), and what its gradients are made from."""
    (kernel, bias), *dense, (mix, mix_bias), (last, last_bias) = zip(weights[::2], weights[1::2], strict=True)
    width, hidden = len(bias), []
    grown, stop = first.new_empty(len(first), mix.shape[1]), width
    torch.addmm(bias, first, kernel.flatten(1).T, out=grown[:, :width])
    for (kernel, bias), (spatial, spatial_bias) in zip(dense[::2], dense[1::2], strict=True):
        hidden.append(product_relu(grown[:, :stop], kernel.flatten(1), bias))
        start, stop = stop, stop + len(spatial_bias)
        convolution_relu(as_image(hidden[-1], features), spatial, spatial_bias, out=grown[:, start:stop])
    mixed = torch.addmm(mix_bias, grown, mix.flatten(1).T)
    a, b_and_c = mixed[:, :width], mixed[:, width:]
    output = (grown[:, :width] + a).add_(F.glu(b_and_c))
    return torch.addmm(last_bias, output, last.flatten(1).T), [grown, mixed, output, *hidden]


def network_backward(
    to_raw: Tensor,
    to_first: Tensor,
    first: Tensor,
    features: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients to the weights, where they are needed; that to `first` is added to `to_first`."""
    (grown, mixed, output, *hidden), gradients = kept, [None] * len(weights)

    def to_product(number: int, gradient: Tensor, inputs: Tensor) -> Tensor:
        """Set the gradients to kernel and bias of a 1x1 convolution; its kernel as a matrix"""
        if needed[2 * number]:
            gradients[2 * number] = (gradient.T @ inputs).view(weights[2 * number].shape)
        if needed[2 * number + 1]:
            gradients[2 * number + 1] = gradient.sum(0)
        return weights[2 * number].flatten(1)

    last, width = len(weights) // 2 - 1, len(weights[1])
    to_output = to_raw @ to_product(last, to_raw, output)
    to_mixed = torch.empty_like(mixed)
    to_mixed[:, :width] = to_output
    torch.ops.aten.glu_backward.grad_input(to_output, mixed[:, width:], 1, grad_input=to_mixed[:, width:])
    to_grown = to_mixed @ to_product(last - 1, to_mixed, grown)
    to_grown[:, :width] += to_output
    stop = grown.shape[1]
    for number in range(last - 2, 0, -2):  # of the 3x3 convolution; the 1x1 is the one before
        kernel, inputs = weights[2 * number], hidden.pop()
        start = stop - len(kernel)
        gradient = torch.ops.aten.threshold_backward(to_grown[:, start:stop], grown[:, start:stop], 0)
        if needed[2 * number + 1]:
            gradients[2 * number + 1] = gradient.sum(0)
        gradient, gradients[2 * number], _ = torch.ops.aten.convolution_backward(
            *(laid_out_like(kernel, as_image(pixels, features)) for pixels in (gradient, inputs)),
            *(kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, needed[2 * number], False]),
        )
        gradient = torch.ops.aten.threshold_backward(as_rows(gradient), inputs, 0)
        to_grown[:, :start].addmm_(gradient, to_product(number - 1, gradient, grown[:, :start]))
        stop = start
    to_first.addmm_(to_grown[:, :width], to_product(0, to_grown[:, :width], first))
    return gradients


def product_relu(inputs: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """relu(inputs @ matrix.T + bias)"""
    if hasattr(torch, "_addmm_activation"):  # not documented; a pass over the output less
        return torch._addmm_activation(bias, inputs, matrix.T)
    return torch.addmm(bias, inputs, matrix.T).relu_()


def convolution_relu(features: Tensor, kernel: Tensor, bias: Tensor, out: Tensor) -> None:
    """relu of a 3x3 convolution of features (B, C, h, w), into the rows `out`"""
    torch.add(as_rows(F.conv2d(laid_out_like(kernel, features), kernel, padding=1)), bias, out=out).relu_()


def laid_out_like(kernel: Tensor, features: Tensor) -> Tensor:
    """Features in the layout of a kernel: cuDNN has fast convolutions of true float32 for contiguous tensors alone."""
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    return features.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def as_rows(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C); a view where they lie channels_last"""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def as_image(rows: Tensor, like: Tensor) -> Tensor:
    """(B h w, C) -> (B, C, h, w), a view that lies channels_last; B, h, w are those of `like`"""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def halves(rows: Tensor, half: int, at_end: bool) -> tuple[Tensor, Tensor]:
    """The `half` columns at the start, or at the end, and the rest"""
    return (rows[:, -half:], rows[:, :-half]) if at_end else (rows[:, :half], rows[:, half:])
