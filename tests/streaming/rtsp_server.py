"""An RTSP server over a video file, for the system's Python with GStreamer's bindings.

rtsp_server.py PORT CLIP.mp4 [USER:PASSWORD], or --check. Prints "ready" when it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
NEEDED = ("qtdemux", "h264parse", "rtph264pay")
if not all(Gst.ElementFactory.find(name) for name in NEEDED):
    sys.exit("GStreamer lacks one of " + ", ".join(NEEDED))
if sys.argv[1] == "--check":
    sys.exit(0)

server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( filesrc location={sys.argv[2]} ! qtdemux ! h264parse config-interval=1 ! rtph264pay name=pay0 pt=96 )"
)
if len(sys.argv) > 3:
    user, _, password = sys.argv[3].partition(":")
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    for permission in ("access", "construct"):
        permissions.add_permission_for_role("user", f"media.factory.{permission}", True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
