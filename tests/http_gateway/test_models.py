"""Lists of models."""

from chassis.errors import Unavailable
from tandem.v1 import gateway_pb2, model_pb2
from tests.conftest import TAG
from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import RunningDoor

PAIR = "a-v1.0.0,b-v1.0.0"


async def test_the_release_and_its_alias_are_listed(door: RunningDoor) -> None:
    listed = (await door.client.get("/v1/models")).json()
    release, alias = listed["data"]
    assert (listed["object"], release["id"], alias["id"]) == ("list", TAG, "default")
    assert {**alias, "id": TAG} == release
    assert (release["ready"], release["is_default"], release["renders_tools"]) == (True, True, False)
    assert release["max_model_len"] == 1024
    assert release["vision"]["state"] == release["language"]["state"] == "ready"


async def list_models(
    _self: object, _request: gateway_pb2.GatewayListModelsRequest, _context: object
) -> gateway_pb2.GatewayListModelsResponse:
    loading = model_pb2.ModelInfo(state=model_pb2.MODEL_STATE_LOADING)
    return gateway_pb2.GatewayListModelsResponse(
        releases=[
            gateway_pb2.ReleaseInfo(
                release=gateway_pb2.Release(vision_tag="a-v1.0.0", language_tag="b-v1.0.0"),
                is_default=True,
                vision=loading,
            ),
            gateway_pb2.ReleaseInfo(release=gateway_pb2.Release(vision_tag=TAG, language_tag=TAG), ready=True),
        ]
    )


async def test_a_release_of_two_tags_is_found_by_its_name(open_door: OpenDoor) -> None:
    door = await open_door({"ListModels": list_models}, model_aliases=("default", "gpt-4o"))
    names = [model["id"] for model in (await door.client.get("/v1/models")).json()["data"]]
    assert names == [PAIR, TAG, "default", "gpt-4o"]
    found = (await door.client.get(f"/v1/models/{PAIR}")).json()
    assert (found["root"], found["ready"], found["vision"]["state"]) == (PAIR, False, "loading")
    assert (await door.client.get("/v1/models/gpt-4o")).json()["root"] == PAIR
    missing = await door.client.get("/v1/models/gpt-5")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "UNKNOWN_RELEASE")


async def test_a_gateway_that_is_gone_is_an_error(open_door: OpenDoor) -> None:
    async def fail(_self: object, _request: object, _context: object) -> None:
        raise Unavailable("The gateway is stopping.", reason="STOPPING")

    door = await open_door({"ListModels": fail})
    response = await door.client.get("/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "STOPPING")
