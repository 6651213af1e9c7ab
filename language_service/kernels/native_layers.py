"""Compute all layers in one call."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Angles, Kernels, Layer, Projection
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.library import NativeLibrary, address
from language_service.kernels.native_attention import NativeAttend
from language_service.kernels.native_low_bit import NativeLowBitProjection
from language_service.kernels.native_projection import NativeProjection
from language_service.model import Attend, ImageRows

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float


class _Matrix(ctypes.Structure):
    """`Matrix` in layers.cpp."""

    _fields_ = (("panels", _POINTER), ("bias", _POINTER), ("low_bit", _POINTER))


class _Layer(ctypes.Structure):
    """`Layer` in layers.cpp."""

    _fields_ = (
        *((name, _POINTER) for name in ("attention_norm", "q_norm", "k_norm", "mlp_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
    )


class _Model(ctypes.Structure):
    """`Model` in layers.cpp."""

    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, _LONG) for name in ("num_layers", "num_levels", "width", "heads", "kv_heads", "size", "mlp_width")),
        ("eps", _FLOAT),
    )


class _Image(ctypes.Structure):
    """`Image` in layers.cpp."""

    _fields_ = (("levels", _POINTER), *((name, _LONG) for name in ("first", "num_rows", "stride")))


class _Batch(ctypes.Structure):
    """`Batch` in layers.cpp."""

    _fields_ = (
        *((name, _POINTER) for name in ("cosines", "sines", "keys", "values", "spans", "tables", "wanted", "images")),
        *((name, _LONG) for name in ("num_rows", "num_spans", "block_size", "num_wanted", "num_images")),
    )


class NativeLayers(LayerByLayer):
    """All layers in one call of C++.

    Only where `NativeAttention` reads the cache. Otherwise they run one after the other.

    A step of 28 layers has about 250 operations. Calling each from Python takes 2 ms more, a twentieth of the time to
    read the weights of a model of 0.6 B parameters.
    """

    def __init__(
        self, library: NativeLibrary, kernels: Kernels, config: LanguageConfig, layers: Sequence[Layer]
    ) -> None:
        super().__init__(kernels, config, layers)
        self._compute = library.layers
        self._model = _Model(
            (_Layer * len(layers))(*map(_fields, layers)),
            config.num_layers,
            config.num_deepstack_levels,
            config.width,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.mlp_width,
            config.norm_eps,
        )

    def __call__(
        self, hidden_TD: Tensor, angles: Angles, attend: Attend, rows_R: Tensor, images: Sequence[ImageRows] = ()
    ) -> Tensor:
        """Return the last layer's outputs [R, D]."""
        if not isinstance(attend, NativeAttend):
            return super().__call__(hidden_TD, angles, attend, rows_R, images)
        out_TD = hidden_TD.clone()
        if self._config.num_deepstack_levels == 0:
            images = ()
        levels = (_Image * len(images))(*map(_image, images)) if images else None
        cos_T1F, sin_T1F = angles
        batch = _Batch(
            cosines=cos_T1F.data_ptr(),
            sines=sin_T1F.data_ptr(),
            keys=ctypes.addressof(attend.cache.keys_L),
            values=ctypes.addressof(attend.cache.values_L),
            spans=attend.spans_S4.buffer_info()[0],
            tables=attend.tables.buffer_info()[0],
            wanted=rows_R.data_ptr(),
            images=None if levels is None else ctypes.addressof(levels),
            num_rows=len(hidden_TD),
            num_spans=len(attend.spans_S4) // 4,
            block_size=attend.cache.kv.shape[-3],
            num_wanted=len(rows_R),
            num_images=len(images),
        )
        self._compute(
            ctypes.addressof(self._model), ctypes.addressof(batch), out_TD.data_ptr(), torch.get_num_threads()
        )
        return out_TD[: len(rows_R)]


def can_compute(layers: Sequence[Layer]) -> bool:
    """Return whether `NativeLayers` takes all projections."""
    projections = (each for layer in layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down))
    return all(isinstance(each, NativeProjection | NativeLowBitProjection) for each in projections)


def _fields(layer: Layer) -> _Layer:
    return _Layer(
        attention_norm=layer.attention_norm.data_ptr(),
        q_norm=address(layer.q_norm),
        k_norm=address(layer.k_norm),
        mlp_norm=layer.mlp_norm.data_ptr(),
        qkv=_matrix(layer.qkv),
        out=_matrix(layer.out),
        gate_up=_matrix(layer.gate_up),
        down=_matrix(layer.down),
    )


def _matrix(projection: Projection) -> _Matrix:
    if isinstance(projection, NativeLowBitProjection):
        return _Matrix(low_bit=ctypes.addressof(projection.matrix))
    assert isinstance(projection, NativeProjection)
    return _Matrix(projection.panels_PJ64x2.data_ptr(), address(projection.bias_N))


def _image(image: ImageRows) -> _Image:
    levels_NLD = image.tokens_NLD[:, 1:]
    assert levels_NLD.dtype == torch.bfloat16
    assert levels_NLD[0].is_contiguous()
    return _Image(
        levels=levels_NLD.data_ptr(),
        first=image.first,
        num_rows=len(levels_NLD),
        stride=levels_NLD.stride(0),
    )
