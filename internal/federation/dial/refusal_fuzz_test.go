package dial

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// FuzzRefusal: an address of the table is refused in every form in which IPv6 can carry it, and what is allowed opens
// nothing else. One form that gets through would do to reach into the site's network.
func FuzzRefusal(f *testing.F) {
	for _, network := range refused {
		whole := network.Prefix.Addr().As16()
		f.Add(whole[:], uint8(32))
	}
	for _, literal := range []string{"8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:a9fe:a9fe::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2606:4700::1111"} {
		whole := netip.MustParseAddr(literal).As16()
		f.Add(whole[:], uint8(0))
	}
	f.Fuzz(func(t *testing.T, raw []byte, bits uint8) {
		if len(raw) != 16 {
			return
		}
		addr := netip.AddrFrom16([16]byte(raw))
		if _, isRefused := refusal(addr, nil); !isRefused {
			if addr.Is4In6() || raw[0]>>5 != 1 { // 2000::/3 alone is given out
				t.Fatalf("%s was not refused", addr)
			}
			for _, network := range refused {
				if network.Prefix.Contains(addr) {
					t.Fatalf("%s was not refused, but lies in %s", addr, network.Prefix)
				}
			}
		}
		if _, isRefused := refusal(addr.WithZone("lo"), []netip.Prefix{netip.MustParsePrefix("::/0")}); addr.Is6() && !addr.Is4In6() && !isRefused {
			t.Fatalf("%s was not refused with a zone", addr)
		}
		// An opened network opens its own addresses alone.
		opened := netip.PrefixFrom(addr, int(bits)%129).Masked()
		other := addr.Next()
		if _, isRefused := refusal(other, []netip.Prefix{opened}); other.IsValid() && opened.Contains(other) == isRefused && opened.Contains(other) {
			t.Fatalf("%s is refused although %s is open", other, opened)
		}
		if _, plain := refusal(other, nil); other.IsValid() && !opened.Contains(other) {
			if _, isRefused := refusal(other, []netip.Prefix{opened}); isRefused != plain {
				t.Fatalf("%s, which lies outside %s, is opened by it", other, opened)
			}
		}
		// The last four bytes as an IPv4 address, and all forms that carry it.
		four := netip.AddrFrom4([4]byte(raw[12:]))
		_, isRefused := refusal(four, nil)
		for form, carrier := range carriers(four) {
			if _, carried := refusal(carrier, nil); !carried {
				t.Fatalf("%s, %s of %s, was not refused", carrier, form, four)
			}
			// Of what a name server says in the mapped form, the IPv4 address is checked.
			if _, unmapped := refusal(carrier.Unmap(), nil); carrier.Is4In6() && unmapped != isRefused {
				t.Fatalf("%s is refused: %t, and %s: %t", carrier.Unmap(), unmapped, four, isRefused)
			}
		}
	})
}

// carriers are the IPv6 addresses that stand for an IPv4 address.
func carriers(four netip.Addr) map[string]netip.Addr {
	v4 := four.As4()
	at := func(prefix string, offset int, mask byte) netip.Addr {
		whole := netip.MustParseAddr(prefix).As16()
		for i, b := range v4 {
			whole[offset+i] = b ^ mask
		}
		return netip.AddrFrom16(whole)
	}
	teredo := at("2001:0:102:304::", 12, 0xff).As16()
	binary.BigEndian.PutUint16(teredo[8:], 0x8000)
	return map[string]netip.Addr{
		"IPv4-mapped": at("::ffff:0:0", 12, 0), "IPv4-compatible": at("::", 12, 0), "SIIT": at("::ffff:0:0:0", 12, 0), "NAT64": at("64:ff9b::", 12, 0),
		"local NAT64": at("64:ff9b:1::", 12, 0), "6to4": at("2002::", 2, 0), "Teredo": netip.AddrFrom16(teredo), "Teredo's server": at("2001::", 4, 0),
		"link-local ISATAP": at("fe80::5efe:0:0", 12, 0),
	}
}
