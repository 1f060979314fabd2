package dial

import (
	"net/netip"
	"slices"
)

// Network is a range of addresses that no stranger's server name may lead to.
type Network struct {
	Prefix netip.Prefix
	// What names the range in a sentence: "is a private network".
	What string
	// Source is the document that sets the range aside.
	Source string
}

// refused is the one table of networks that are never dialled unless the configuration opens them. More specific ranges
// stand before those that contain them, so that the first match names the reason best. Addresses that carry an IPv4
// address inside are refused as a whole: what is behind them depends on a translator that we cannot see.
var refused = []Network{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network", "RFC 791, RFC 1122 §3.2.1.3"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private network", "RFC 1918"},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT", "RFC 6598"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", "RFC 1122 §3.2.1.3"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, cloud metadata", "RFC 3927"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private network", "RFC 1918"},
	{netip.MustParsePrefix("192.0.0.0/24"), "IETF protocol assignments", "RFC 6890 §2.1"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation (TEST-NET-1)", "RFC 5737"},
	{netip.MustParsePrefix("192.88.99.0/24"), "former 6to4 relay anycast", "RFC 7526"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private network", "RFC 1918"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking", "RFC 2544"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation (TEST-NET-2)", "RFC 5737"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation (TEST-NET-3)", "RFC 5737"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", "RFC 1112, RFC 5771"},
	{netip.MustParsePrefix("255.255.255.255/32"), "limited broadcast", "RFC 919, RFC 8190"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved", "RFC 1112 §4"},

	{netip.MustParsePrefix("::/128"), "unspecified", "RFC 4291 §2.5.2"},
	{netip.MustParsePrefix("::1/128"), "loopback", "RFC 4291 §2.5.3"},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible IPv6", "RFC 4291 §2.5.5.1"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped IPv6", "RFC 4291 §2.5.5.2"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "IPv4-translated IPv6 (SIIT)", "RFC 2765 §2.1"},
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64", "RFC 6052"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local NAT64", "RFC 8215"},
	{netip.MustParsePrefix("100::/64"), "discard-only", "RFC 6666"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "dummy prefix", "RFC 9780"},
	{netip.MustParsePrefix("2001::/32"), "Teredo", "RFC 4380"},
	{netip.MustParsePrefix("2001:2::/48"), "benchmarking", "RFC 5180"},
	{netip.MustParsePrefix("2001:10::/28"), "ORCHID", "RFC 4843"},
	{netip.MustParsePrefix("2001:20::/28"), "ORCHIDv2", "RFC 7343"},
	{netip.MustParsePrefix("2001::/23"), "IETF protocol assignments", "RFC 2928"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation", "RFC 3849"},
	{netip.MustParsePrefix("2002::/16"), "6to4", "RFC 3056"},
	{netip.MustParsePrefix("3fff::/20"), "documentation", "RFC 9637"},
	{netip.MustParsePrefix("5f00::/16"), "segment routing identifiers", "RFC 9602"},
	{netip.MustParsePrefix("fc00::/7"), "private network (unique local)", "RFC 4193"},
	{netip.MustParsePrefix("fe80::/10"), "link-local", "RFC 4291 §2.5.6"},
	{netip.MustParsePrefix("fec0::/10"), "site-local", "RFC 3879"},
	{netip.MustParsePrefix("ff00::/8"), "multicast", "RFC 4291 §2.7"},
	// All that is left outside 2000::/3, the only range from which global unicast addresses are given out.
	{netip.MustParsePrefix("::/3"), "reserved", "RFC 4291 §2.4"},
	{netip.MustParsePrefix("4000::/2"), "reserved", "RFC 4291 §2.4"},
	{netip.MustParsePrefix("8000::/1"), "reserved", "RFC 4291 §2.4"},
}

// RefusedNetworks is a copy of the table of refused networks, for documentation and diagnosis.
func RefusedNetworks() []Network { return slices.Clone(refused) }

// refusal returns the network for which addr may not be dialled. allow opens ranges whatever the table says. An address
// with a zone names an interface of this machine and is refused whatever allow says.
func refusal(addr netip.Addr, allow []netip.Prefix) (Network, bool) {
	if !addr.IsValid() || addr.Zone() != "" {
		return Network{What: "no plain address"}, true
	}
	for _, prefix := range allow {
		if prefix.Contains(addr) {
			return Network{}, false
		}
	}
	for _, network := range refused {
		if network.Prefix.Contains(addr) {
			return network, true
		}
	}
	return Network{}, false
}
