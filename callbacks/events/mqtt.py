"""Events to an MQTT broker."""

from __future__ import annotations

import json
import string
import threading
from typing import Any

from callbacks.events.sinks import Delivery, EventSink, Message, NotNow
from callbacks.secret import secret
from datamodules.errors import UserError

PLACES = ("source", "rule", "action", "state")
"""Fields of an event that a topic may hold in braces."""
RECONNECT_SECONDS = 30
"""The longest pause between two attempts to connect."""


class MqttSink(EventSink):
    """Publish every event as JSON on an MQTT broker, with quality of service 1: at least once.

    The connection is made and, when it is lost, made again in the background. An event may arrive twice: ``event`` in
    it says which it is.

    Args:
        host: host of the broker.
        port: usually 1883, or 8883 with TLS.
        topic: may hold ``{source}``, ``{rule}``, ``{action}`` and ``{state}``; what MQTT gives a meaning in names
            becomes ``_``.
        user: where the broker asks for one.
        password: ``$NAME`` takes it from the environment.
        tls: whether the connection is encrypted.
        timeout_seconds: longest wait for the broker's receipt of an event.
        delivery: see ``Delivery``.
    """

    def __init__(
        self,
        host: str,
        port: int = 1883,
        topic: str = "onlooker/events/{source}/{rule}",
        user: str | None = None,
        password: str | None = None,
        tls: bool = False,
        timeout_seconds: float = 10.0,
        delivery: Delivery = Delivery(),
    ) -> None:
        super().__init__(f"mqtt {host}:{port}", delivery)
        if not host or not 0 < port < 2**16:
            raise UserError(f"must be a host and a port from 1 to 65535, got {host!r} and {port}")
        if timeout_seconds <= 0:
            raise UserError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        self.host, self.port, self.topic, self.user, self.tls = host, port, topic, user, tls
        self.timeout_seconds = timeout_seconds
        self.password = None if password is None else secret(password, "password")
        _check_topic(topic)
        self._client: Any = None

    def start(self) -> None:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            raise UserError("paho-mqtt is not installed", "MqttSink", "pip install 'onlooker[events]'") from error
        self._answer: Any = None
        self._receipt: Any = None
        self._connected = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._connected.clear()
        self._client.reconnect_delay_set(1, RECONNECT_SECONDS)
        if self.user is not None:
            self._client.username_pw_set(self.user, self.password)
        if self.tls:
            self._client.tls_set()
        self._client.connect_async(self.host, self.port)
        self._client.loop_start()
        super().start()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._client.disconnect()
            self._client.loop_stop()

    def deliver(self, message: Message) -> None:
        if not self._connected.wait(self.timeout_seconds):
            said = "cannot be reached" if self._answer is None else f"the broker answers: {self._answer}"
            raise NotNow(said)
        if self._receipt is None:  # else it is on its way already, and the client sends it again by itself
            self._receipt = self._client.publish(topic_of(self.topic, message), json.dumps(message), qos=1)
        try:
            self._receipt.wait_for_publish(self.timeout_seconds)
        except (RuntimeError, ValueError) as error:  # not connected any more
            self._receipt = None
            raise NotNow(f"the connection was lost ({error})") from error
        if not self._receipt.is_published():
            raise NotNow("there was no receipt from the broker")
        self._receipt = None

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._answer = str(reason)
        else:
            self._answer = None
            self._connected.set()


def topic_of(form: str, message: Message) -> str:
    """Return the topic of an event.

    >>> topic_of("home/{source}/{rule}", {"source": "cam/1", "rule": "a+b", "action": "a", "state": "ended"})
    'home/cam_1/a_b'
    """
    names = {place: "".join("_" if c in "/+#\0" else c for c in str(message[place])) for place in PLACES}
    return form.format(**names)


def _check_topic(topic: str) -> None:
    try:
        places = [name for _, name, *_ in string.Formatter().parse(topic) if name is not None]
    except ValueError as error:
        raise UserError(f"is no topic: {error}", "topic", "write {{ for a brace") from error
    if unknown := [name for name in places if name not in PLACES]:
        raise UserError(f"an event has no {unknown[0]!r}", "topic", f"there are {', '.join(PLACES)}")
    if not topic or set(topic) & set("+#\0"):
        raise UserError(f"is {topic!r}; topics to publish on hold no + and #", "topic")
