# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""JSON schemas of what docs/reference/embeddings.md states of the STAC item and of the Zarr store.

They restate the published schemas of STAC 1.0.0, of its extensions `embeddings` 0.0.1, `projection` 1.1.0 and `raster`
1.1.0, and of version 1 of the Zarr conventions `geoemb:`, `spatial:` and `proj:`, as far as they concern our files.
"""

from typing import Any

from jsonschema import Draft202012Validator


def obj(required: str = '', closed: bool = False, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object."""
    made = {'type': 'object', 'required': required.split(), 'properties': properties}
    return made | ({'additionalProperties': False} if closed else {})


def array(items: Any, least: int = 0, most: int | None = None) -> dict[str, Any]:
    """Return the schema of an array."""
    return {'type': 'array', 'items': items, 'minItems': least} | ({} if most is None else {'maxItems': most})


STRING, NUMBER, INTEGER = ({'type': name} for name in ('string', 'number', 'integer'))
POSITIVE = {'type': 'integer', 'minimum': 1}
URI = {'type': 'string', 'pattern': '^[a-z][a-z0-9+.-]*:[^ ]+$'}
TIME = {'type': 'string', 'pattern': r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$'}
TRANSFORM = array(NUMBER, 6, 6)
LINK = obj('rel href', rel=STRING, href=STRING)
POINT = array(NUMBER, 2, 2)
EXPRESSION = obj('format expression', format=STRING)

_GEOEMB = obj(
    'zarr_conventions geoemb:type geoemb:dimensions geoemb:model geoemb:source_data geoemb:data_type '
    'spatial:dimensions',
    **{
        'zarr_conventions': {
            'allOf': [
                {'contains': obj('uuid', closed=True, uuid={'const': uuid}, schema_url=URI, spec_url=URI)}
                for uuid in (
                    '61c12cc5-0e28-4056-999a-480cf3fb7e4c',
                    '689b58e2-cf7b-45e0-9fff-9cfc0883d6b4',
                    'f17cb550-5864-4468-aeb7-f3180cfb622f',
                )
            ]
        },
        'geoemb:type': {'enum': ['pixel', 'chip']},
        'geoemb:dimensions': POSITIVE,
        'geoemb:model': URI,
        'geoemb:source_data': array(URI, 1),
        'geoemb:data_type': STRING,
        'geoemb:gsd': {'type': 'number', 'exclusiveMinimum': 0},
        'geoemb:build_version': STRING,
        'geoemb:quantization': obj(
            'method original_dtype', closed=True, method=STRING, original_dtype=STRING, quantized_dtype=STRING
        ),
        'proj:code': {'type': 'string', 'pattern': '^[A-Z]+:[0-9]+$'},
        'proj:wkt2': STRING,
        'spatial:dimensions': array(STRING, 2, 2),
        'spatial:transform': TRANSFORM,
        'spatial:shape': array(POSITIVE, 2, 2),
        'spatial:bbox': array(NUMBER, 4, 4),
        'spatial:registration': {'enum': ['node', 'pixel']},
    },
) | {
    'oneOf': [{'required': ['proj:code']}, {'required': ['proj:wkt2']}],
    'propertyNames': {'not': {'pattern': '^geoemb:(?!(type|dimensions|model|source_data|data_type|gsd|build_version|'
                                         'quantization)$)'}},
}  # fmt: skip

_BAND = obj(data_type={'const': 'int8'}, nodata=NUMBER, description=STRING, name=STRING)
_ASSET = obj('href', href=STRING, type=STRING, roles=array(STRING)) | {'propertyNames': {'not': {'pattern': '^emb:'}}}
_PROPERTIES: dict[str, Any] = {
    'datetime': {'anyOf': [TIME, {'type': 'null'}]},
    'start_datetime': TIME,
    'end_datetime': TIME,
    'created': TIME,
    'gsd': {'type': 'number', 'exclusiveMinimum': 0},
    'data_type': STRING,
    'emb:runtime_parameters': {'type': 'object'},
    'emb:postprocessing': EXPRESSION,
    'emb:quantization': obj(
        'method original_dtype',
        closed=True,
        method=STRING,
        original_dtype=STRING,
        quantized_dtype=STRING,
        scale=array(NUMBER),
        offset=array(NUMBER),
    ),
    'proj:epsg': {'type': ['integer', 'null']},
    'proj:wkt2': {'type': ['string', 'null']},
    'proj:shape': array(INTEGER, 2, 2),
    'proj:transform': TRANSFORM,
}
_ITEM = obj(
    'type stac_version id geometry bbox properties links assets stac_extensions',
    type={'const': 'Feature'},
    stac_version={'const': '1.0.0'},
    id={'type': 'string', 'minLength': 1},
    stac_extensions={
        'type': 'array',
        'uniqueItems': True,
        'allOf': [
            {'contains': {'const': f'https://stac-extensions.github.io/{name}/schema.json'}}
            for name in ('embeddings/v0.0.1', 'projection/v1.1.0', 'raster/v1.1.0')
        ],
    },
    geometry=obj('type coordinates', type={'const': 'Polygon'}, coordinates=array(array(POINT, 4), 1)),
    bbox=array(NUMBER, 4, 4),
    links=array(LINK),
    assets=obj('embeddings', embeddings=_ASSET | {'required': ['href', 'raster:bands']}, zarr=_ASSET),
    properties=obj('datetime', **_PROPERTIES)
    | {
        # A null datetime requires both ends of the period.
        'if': {'properties': {'datetime': {'type': 'null'}}},
        'then': {'required': ['start_datetime', 'end_datetime']},
        'propertyNames': {
            'not': {'pattern': '^emb:(?!(runtime_parameters|postprocessing|quantization)$)|'
                               '^proj:(?!(epsg|wkt2|shape|transform)$)'},
        },
    },
)  # fmt: skip
_ITEM['properties']['assets']['properties']['embeddings']['properties']['raster:bands'] = array(_BAND, 1)

#: Validator of the STAC item of an embedding map.
ITEM = Draft202012Validator(_ITEM)
#: Validator of the attributes of the group of a Zarr store.
GEOEMB = Draft202012Validator(_GEOEMB)
