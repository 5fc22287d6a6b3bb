"""The networks: from pixels to what their heads say, and from that to the nuclei and tissue of a tile."""
