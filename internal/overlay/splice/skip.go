package splice

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// beginString turns to reading the string whose opening quote is the next byte.
func (s *scanner) beginString(in state) {
	s.state = in
	s.token, s.tooLong, s.escaped = s.token[:0], false, false
}

// readString reads on in a string that matters.
func (s *scanner) readString(b []byte, i int) int {
	from := i
	if len(s.token) == 0 && !s.tooLong {
		i++ // the opening quote
	}
	end, closed := s.endOfString(b, i)
	part := b[from:end]
	if !closed {
		s.keep(part)
		return end
	}
	if len(s.token) > 0 || s.tooLong {
		s.keep(part)
		part = s.token
	} else {
		s.tooLong = len(part) > maxToken
	}
	if s.tooLong {
		part = nil
	}
	s.stringRead(part)
	return end
}

func (s *scanner) keep(part []byte) {
	if s.tooLong = s.tooLong || len(s.token)+len(part) > maxToken; !s.tooLong {
		s.token = append(s.token, part...)
	}
}

// endOfString returns the index after the closing quote of the string that b[i:] is inside of, or len(b) if it does not
// end there.
func (s *scanner) endOfString(b []byte, i int) (int, bool) {
	if s.escaped {
		if i == len(b) {
			return i, false
		}
		i++
		s.escaped = false
	}
	for {
		quote := indexQuote(b, i)
		if quote < 0 {
			s.escaped = oddBackslashes(b[i:])
			return len(b), false
		}
		if quote == i || b[quote-1] != '\\' || !oddBackslashes(b[i:quote]) {
			return quote + 1, true
		}
		i = quote + 1
	}
}

// indexQuote finds the first quote in b at or after i. Most strings are short, so the first bytes are looked at
// a word at a time before the call is made that is fast on long ones.
func indexQuote(b []byte, i int) int {
	const (
		quotes = '"' * 0x0101010101010101
		ones   = 0x0101010101010101
		highs  = 0x8080808080808080
	)
	for range 4 {
		if i+8 > len(b) {
			break
		}
		x := binary.LittleEndian.Uint64(b[i:]) ^ quotes
		if zero := (x - ones) &^ x & highs; zero != 0 {
			return i + bits.TrailingZeros64(zero)/8 // the lowest zero byte is found exactly
		}
		i += 8
	}
	quote := bytes.IndexByte(b[i:], '"')
	if quote < 0 {
		return -1
	}
	return i + quote
}

// oddBackslashes says whether what follows b inside a string is escaped; b begins unescaped.
func oddBackslashes(b []byte) bool {
	n := len(b)
	for n > 0 && b[n-1] == '\\' {
		n--
	}
	return (len(b)-n)%2 == 1
}

// beginSkip takes the first byte of a value that does not matter.
func (s *scanner) beginSkip(c byte, i int, back state) int {
	s.back = back
	switch {
	case c == '"':
		s.state, s.depth, s.escaped = skippingString, 0, false
		return i + 1
	case c == '{' || c == '[':
		s.state, s.depth = skipping, 1
		return i + 1
	case c == '-' || c >= '0' && c <= '9' || c == 't' || c == 'f' || c == 'n':
		s.state = skippingScalar
		return i + 1
	}
	s.giveUp()
	return i
}

// skipScalar leaves a number, true, false or null to whoever parses it, and stops at what can end one.
func (s *scanner) skipScalar(b []byte, i int) int {
	for ; i < len(b); i++ {
		switch b[i] {
		case ',', '}', ']', ' ', '\n', '\t', '\r':
			s.state = s.back
			return i
		case '"', '{', '[', ':':
			s.giveUp()
			return i
		}
	}
	return i
}

// skipString skips to the end of a string that does not matter, which is a value of its own or inside one.
func (s *scanner) skipString(b []byte, i int) int {
	end, closed := s.endOfString(b, i)
	if closed {
		if s.state = skipping; s.depth == 0 {
			s.state = s.back
		}
	}
	return end
}

// skip skips to the end of an object or array. Nearly all of a large answer passes here.
func (s *scanner) skip(b []byte, i int) int {
	depth := s.depth
	for i < len(b) {
		c := b[i]
		i++
		if c == '"' {
			// The usual string is short and without a backslash before its end.
			if quote := indexQuote(b, i); quote > i && b[quote-1] != '\\' {
				i = quote + 1
				continue
			}
			end, closed := s.endOfString(b, i)
			if !closed {
				s.depth, s.state = depth, skippingString
				return end
			}
			i = end
			continue
		}
		if c < '[' {
			continue // a digit, a comma, a colon, white space
		}
		switch c {
		case '{', '[':
			if depth++; depth > maxDepth {
				s.giveUp()
				return i
			}
		case '}', ']':
			if depth--; depth == 0 {
				s.state = s.back
				return i
			}
		}
	}
	s.depth = depth
	return i
}
